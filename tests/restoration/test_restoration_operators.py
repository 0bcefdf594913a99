"""Operators against their definition, their adjoint and pseudo-inverse, and a dense SVD."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ddpm.common.errors import UserError
from ddpm.restoration import operators as kernels
from ddpm.restoration.operators import (
    Channels,
    CircularBlur,
    Denoising,
    Dense,
    Inpainting,
    Separable,
    WalshHadamard,
    bicubic,
    separable_blur,
    superresolution,
)

NAMES = ["denoising", "inpainting", "average", "bicubic", "circular", "separable", "channels", "hadamard", "dense"]


@st.composite
def operators(draw, name):
    """Any operator of a kind, on a small image of any size."""
    channels = draw(st.integers(1, 4), label="channels")
    height = draw(st.integers(2, 9), label="height")
    width = draw(st.integers(2, 9), label="width")
    shape = (channels, height, width)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6), label="seed"))
    side = min(height, width)
    match name:
        case "denoising":
            return Denoising(shape)
        case "inpainting":
            known = torch.rand(shape if draw(st.booleans()) else shape[1:], generator=generator) < 0.5
            known[..., 0, 0] = True
            return Inpainting(shape, known)
        case "average" | "bicubic":
            return superresolution(shape, draw(st.integers(2, side)), name)
        case "circular":
            size = draw(st.integers(1, height)), draw(st.integers(1, width))
            return CircularBlur(shape, torch.randn(size, generator=generator))
        case "separable":
            taps = [torch.rand(draw(st.integers(1, n)), generator=generator) for n in (height, width)]
            return separable_blur(shape, *taps)
        case "channels":
            return Channels(shape, torch.randn(draw(st.integers(1, 5)), channels, generator=generator))
        case "hadamard":
            return WalshHadamard(shape, draw(st.integers(1, height * width)), draw(st.integers(0, 99)))
        case "dense":
            return Dense(shape, torch.randn(draw(st.integers(1, 12)), channels * height * width, generator=generator))


def as_matrix(operator):
    """H as a dense matrix (m, n)."""
    n = int(np.prod(operator.image_shape))
    return operator.H(torch.eye(n).reshape(n, *operator.image_shape)).flatten(1).T.double()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_operator_identities(name, data):
    operator = data.draw(operators(name))
    batch = data.draw(st.integers(1, 3), label="batch")
    x, other = normal(batch, *operator.image_shape), normal(batch, *operator.image_shape, seed=1)
    y = normal(batch, *operator.measurement_shape, seed=2)
    scale = float(operator.singulars.max())

    assert operator.H(x).shape == y.shape
    assert torch.allclose((operator.H(x) * y).sum(), (x * operator.Ht(y)).sum(), rtol=1e-4, atol=2e-3 * max(scale, 1))
    again = operator.H(operator.H_pinv(operator.H(x)))
    assert torch.allclose(again, operator.H(x), atol=2e-4 * max(scale, 1))
    assert torch.allclose(operator.V(operator.Vt(x)), x, atol=1e-5)  # V is orthogonal
    assert torch.allclose((operator.Vt(x) * operator.Vt(other)).sum(), (x * other).sum(), rtol=1e-4, atol=1e-3)

    matrix = as_matrix(operator)
    ours = operator.singulars.flatten().double().sort(descending=True).values
    dense = torch.linalg.svdvals(matrix)
    padded = torch.zeros_like(ours)
    padded[: len(dense)] = dense[: len(ours)]
    assert torch.allclose(ours, padded, atol=1e-5 * max(scale, 1))
    assert torch.allclose(operator.Ht(y).flatten(1).double(), y.flatten(1).double() @ matrix, atol=1e-4 * max(scale, 1))


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_pseudo_inverse_is_the_dense_one(data):
    operator = data.draw(
        operators(data.draw(st.sampled_from(["inpainting", "average", "channels", "hadamard", "dense"])))
    )
    y = normal(2, *operator.measurement_shape)
    expected = torch.linalg.pinv(as_matrix(operator), rtol=1e-5) @ y.flatten(1).double().T
    assert torch.allclose(operator.H_pinv(y).flatten(1).double(), expected.T, atol=1e-3)


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_singular_values_count_as_zero_below_a_hundred_thousandth_of_the_largest(unit):
    """In whatever unit the matrix is: 2e-5 of the largest is inverted, 5e-6 of it is taken for rounding."""
    operator = Dense((1, 2, 2), unit * torch.diag(torch.tensor([1.0, 3e-3, 2e-5, 5e-6])))
    expected = torch.tensor([1.0, 1 / 3e-3, 1 / 2e-5, 0.0]) / unit
    assert torch.allclose(operator.H_pinv(torch.ones(1, 4)).flatten(), expected, rtol=1e-4)
    assert int(operator.seen.sum()) == 3


@pytest.mark.parametrize("size", [(3, 3), (5, 1), (3, 7), (9, 9)])
def test_circular_blur_is_the_convolution(size):
    kernel, image = normal(*size), normal(1, 2, 12, 9, seed=3)
    blurred = CircularBlur((2, 12, 9), kernel).H(image)
    for channel in range(2):
        expected = scipy.ndimage.convolve(image[0, channel].double().numpy(), kernel.double().numpy(), mode="wrap")
        np.testing.assert_allclose(blurred[0, channel], expected, atol=1e-4)


def test_circular_blur_takes_a_kernel_per_channel():
    taps, image = normal(2, 3, 3), normal(1, 2, 8, 6)
    together = CircularBlur((2, 8, 6), taps).H(image)
    apart = [CircularBlur((1, 8, 6), taps[i]).H(image[:, i : i + 1]) for i in range(2)]
    assert torch.allclose(together, torch.cat(apart, dim=1), atol=1e-6)


@pytest.mark.parametrize("along", [[0.1, 0.2, 0.7], [0.1, 0.2, 0.3, 0.4], [0.2, 0.8], [0.1, 0.1, 0.2, 0.2, 0.1, 0.3]])
def test_separable_blur_is_the_mirrored_convolution(along):
    """The centre of an even kernel is the later of its two middle taps."""
    down, along = kernels.gaussian(0.8), torch.tensor(along)
    image = normal(1, 1, 11, 8)
    expected = image[0, 0].double().numpy()
    for axis, taps in enumerate([down, along]):
        expected = scipy.ndimage.convolve1d(expected, taps.double().numpy(), axis=axis, mode="reflect")
    np.testing.assert_allclose(separable_blur((1, 11, 8), down, along).H(image)[0, 0], expected, atol=1e-6)


@pytest.mark.parametrize(("size", "scale"), [((12, 20), 2), ((12, 20), 4), ((15, 9), 3)])
def test_bicubic_equals_pillow(size, scale):
    image = normal(1, 1, *size)
    small = superresolution((1, *size), scale, "bicubic").H(image)[0, 0]
    picture = Image.fromarray(image[0, 0].numpy(), mode="F")
    expected = np.asarray(picture.resize((size[1] // scale, size[0] // scale), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(small, expected, atol=1e-5)


def test_block_average_is_average_pooling():
    image = normal(2, 3, 8, 12)
    small = superresolution((3, 8, 12), 4).H(image)
    assert torch.allclose(small, torch.nn.functional.avg_pool2d(image, 4), atol=1e-6)


def test_superresolution_pads_with_the_edge_and_notes_it():
    image = normal(1, 1, 7, 10)
    operator = superresolution((1, 7, 10), 4)
    padded = torch.nn.functional.pad(image, (0, 2, 0, 1), mode="replicate")
    assert torch.allclose(operator.H(image), torch.nn.functional.avg_pool2d(padded, 4), atol=1e-6)
    assert operator.notes == ["7×10 is not divisible by 4: edge pixels were repeated up to 8×12"]
    assert superresolution((1, 8, 12), 4).notes == []


def test_hadamard_equals_scipy():
    operator = WalshHadamard((1, 4, 8), 32)
    image = normal(1, 1, 4, 8)
    shuffled = image.flatten()[operator.order].double().numpy()
    expected = scipy.linalg.hadamard(32) @ shuffled / np.sqrt(32)
    np.testing.assert_allclose(operator.H(image)[0, 0], expected, atol=1e-5)


def test_grey_equals_pillow():
    pixels = torch.randint(0, 256, (5, 6, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    grey = Channels.grey((3, 5, 6)).H(pixels.permute(2, 0, 1)[None].float())[0, 0]
    expected = np.asarray(Image.fromarray(pixels.numpy()).convert("L"), dtype=float)
    assert np.abs(grey.numpy() - expected).max() <= 1  # Pillow rounds


@pytest.mark.parametrize("kernel", [kernels.gaussian(1.3), kernels.box(4), kernels.motion(5, 30), kernels.motion(1)])
def test_kernels_keep_a_flat_image(kernel):
    assert kernel.sum() == pytest.approx(1)
    assert (kernel >= 0).all()


def test_motion_kernel_lies_along_its_direction():
    across, upright = kernels.motion(5, 0), kernels.motion(5, 90)
    assert across[across.shape[0] // 2].sum() == pytest.approx(1)
    assert torch.allclose(upright, across.T, atol=1e-6)


def test_kernel_from_file(tmp_path):
    np.save(tmp_path / "k.npy", np.array([[1.0, 3.0]]))
    Image.fromarray(np.array([[0, 50], [50, 100]], dtype=np.uint8)).save(tmp_path / "k.png")
    assert torch.allclose(kernels.from_file(tmp_path / "k.npy"), torch.tensor([[0.25, 0.75]]).double())
    assert torch.allclose(kernels.from_file(tmp_path / "k.png"), torch.tensor([[0, 0.25], [0.25, 0.5]]).double())
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "bad.npy").write_bytes(b"no matrix")
    for name, words in {"missing.png": "no kernel file", "bad.png": "not an image", "bad.npy": "cannot read"}.items():
        with pytest.raises(UserError, match=words):
            kernels.from_file(tmp_path / name)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Inpainting((1, 4, 4), torch.ones(5, 4)), "mask is 5×4"),
        (lambda: Inpainting((1, 4, 4), torch.zeros(4, 4)), "no pixel known"),
        (lambda: Inpainting.random((1, 4, 4), 1.5), "fraction of pixels lost"),
        (lambda: CircularBlur((1, 4, 4), torch.ones(5, 3)), "larger than the image"),
        (lambda: CircularBlur((1, 4, 4), torch.full((2, 2), float("nan"))), "finite"),
        (lambda: separable_blur((1, 4, 4), kernels.box(3), kernels.box(9)), "larger than the image"),
        (lambda: superresolution((1, 4, 4), 1), "whole number from 2"),
        (lambda: superresolution((1, 4, 4), 2, "sharp"), "average and bicubic"),
        (lambda: Channels.grey((1, 4, 4)), "colour"),
        (lambda: Channels((3, 4, 4), torch.ones(1, 2)), "3 columns"),
        (lambda: WalshHadamard((1, 4, 4), 17), "1 to 16"),
        (lambda: Dense((1, 4, 4), torch.ones(3, 15)), "16 columns"),
        (lambda: Denoising((4, 4)), "channels, height, width"),
        (lambda: Separable((1, 4, 4), torch.ones(2, 5), torch.ones(2, 4)), "5×4 images"),
        (lambda: Denoising((1, 4, 4)).check(torch.zeros(2, 1, 4, 5)), "has shape"),
        (lambda: kernels.gaussian(0), "width"),
        (lambda: kernels.box(0), "from 1 to"),
        (lambda: kernels.motion(float("nan")), "length"),
    ],
)
def test_operators_refuse_bad_input(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_bicubic_rows_are_averages():
    assert torch.allclose(bicubic(12, 3).sum(1), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("seed", [-1, 10**20])
def test_hadamard_takes_any_whole_number_as_seed(seed):
    operator = WalshHadamard((1, 4, 8), 10, seed)
    assert torch.equal(operator.rows, WalshHadamard((1, 4, 8), 10, seed).rows)
    assert not torch.equal(operator.order, WalshHadamard((1, 4, 8), 10, seed + 1).order)

"""`restore`: several samples, labels and options, and independence of the batches."""

import copy
from dataclasses import replace

import pytest
import torch

from ddpm.common.errors import UserError
from ddpm.interop.diffusers import Student
from ddpm.model import Model, SamplingOptions
from ddpm.restoration import Channels, Denoising, Inpainting, estimate_noise, restore, saturation, superresolution
from ddpm.restoration.methods import METHODS


def test_restored_has_samples_mean_and_std(grey):
    model, prior = grey
    x = prior.sample(4)
    operator = superresolution(model.image_shape, 2)
    y = operator.H(x)
    restored = restore(model, y, operator, samples=6, precision="fp32")
    assert restored.samples.shape == (4, 6, 1, 12, 12)
    assert torch.allclose(restored.mean, restored.samples.mean(1))
    assert torch.allclose(restored.std, restored.samples.std(1, correction=0) / 2)
    assert restored.std.min() >= 0
    assert restored.std.mean() > 1e-3
    single = restore(model, y, operator, precision="fp32")
    assert torch.equal(single.mean, single.samples[:, 0])
    assert (restored.mean - x).square().mean() < (single.mean - x).square().mean()


def test_samples_depend_only_on_name_and_seed(grey):
    model, prior = grey
    operator = Inpainting(model.image_shape, torch.rand(12, 12, generator=torch.Generator().manual_seed(0)) < 0.3)
    y = operator.H(prior.sample(5))
    names = ["a", "b", "c", "d", "e"]
    options = {"samples": 3, "precision": "fp32", "batch_size": 4, "method": "ddnm", "steps": 10}
    together = restore(model, y, operator, names=names, **options)
    alone = restore(model, y[3:4], operator, names=["d"], **options)
    assert torch.equal(together.samples[3:4], alone.samples)
    fewer = restore(model, y[3:4], operator, names=["d"], **{**options, "samples": 1})
    assert torch.equal(fewer.samples[:, 0], alone.samples[:, 0])
    other = restore(model, y[3:4], operator, names=["d"], seed=1, **options)
    assert not torch.allclose(other.samples, alone.samples, atol=1e-2)


def test_dps_takes_any_function(grey):
    model, prior = grey
    x = prior.sample(2)
    restored = restore(model, saturation(1.5)(x), saturation(1.5), method="dps", steps=50, precision="fp32", scale=0.5)
    assert restored.mean.shape == x.shape


def test_colour_is_restored_from_grey(colour):
    model, prior = colour
    x = prior.sample(6)
    operator = Channels.grey(model.image_shape)
    restored = restore(model, operator.H(x), operator, samples=4, precision="fp32")
    assert (operator.H(restored.samples[:, 0]) - operator.H(x)).abs().mean() < 0.02  # except for clipping to [-1, 1]
    grey = operator.H_pinv(operator.H(x))
    assert (restored.mean - x).square().mean() < (grey - x).square().mean()


def test_restore_does_not_move_the_callers_operator(grey, monkeypatch):
    class Watched(Denoising):
        moved = False

        def _apply(self, *arguments):
            self.moved = True
            return super()._apply(*arguments)

    model, prior = grey
    operator = Watched(model.image_shape)
    monkeypatch.setattr(Model, "device", torch.device("cpu", 0))  # not equal to "cpu", like a GPU
    restore(model, operator.H(prior.sample(1)), operator, noise=0.1, steps=2, precision="fp32")
    assert not operator.moved


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": 0}, "at least 1"),
        ({"noise": -1.0}, "at least 0"),
        ({"noise": float("nan")}, "at least 0"),
        ({"method": "magic"}, "no restoration method"),
        ({"method": "repaint"}, "only inpaints"),
        ({"labels": 3}, "without classes"),
        ({"operator": Denoising((3, 12, 12)), "y": torch.zeros(1, 3, 12, 12)}, "1 channels"),
        ({"y": torch.zeros(1, 1, 12, 13)}, "has shape"),
        ({"y": torch.zeros(0, 1, 12, 12)}, "no images to restore"),
        ({"operator": Denoising((1, 8, 12)), "y": torch.zeros(1, 1, 8, 12)}, "smaller than the model's"),
        ({"steps": 2000}, "steps"),
    ],
)
def test_restore_refuses_bad_input(grey, change, words):
    arguments = {"y": torch.zeros(1, 1, 12, 12), "operator": Denoising((1, 12, 12)), **change}
    with pytest.raises(UserError, match=words):
        restore(grey[0], arguments.pop("y"), arguments.pop("operator"), **arguments)


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.25, 0.5])
def test_estimate_noise_finds_sigma(sigma):
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 96), indexing="ij")
    picture = (torch.sin(3 * rows) * torch.cos(4 * columns))[None].expand(3, 96, 96).clone()
    picture[:, 30:60, 30:60] *= -1  # with edges
    noisy = picture + sigma * torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    assert estimate_noise(noisy) == pytest.approx(sigma, rel=0.1)
    known = torch.rand(96, 96, generator=torch.Generator().manual_seed(1)) < 0.8
    assert estimate_noise(noisy * known, known) == pytest.approx(sigma, rel=0.15)


def test_estimate_noise_of_clean_and_of_small_pictures():
    assert estimate_noise(torch.zeros(1, 28, 28)) == 0
    with pytest.raises(UserError, match="give its σ"):
        estimate_noise(torch.zeros(1, 4, 4))
    with pytest.raises(UserError, match="too few"):
        estimate_noise(torch.zeros(1, 28, 28), torch.eye(28))


@pytest.mark.parametrize(("method", "taken"), [("dps", False), ("ddnm", True), ("ddrm", True)])
def test_a_student_has_too_few_steps_for_a_method_that_changes_a_little_in_each(grey, method, taken):
    model, prior = grey
    student = copy.copy(model)
    student.student = Student(steps=2)
    arguments = prior.sample(1), Denoising(model.image_shape), {"method": method, "noise": 0.1}
    if taken:
        assert torch.isfinite(restore(student, *arguments[:2], **arguments[2]).mean).all()
    else:
        with pytest.raises(UserError, match="distilled to 2: use ddrm or ddnm"):
            restore(student, *arguments[:2], **arguments[2])


def test_noise_in_image_units_is_doubled_for_the_models_range(grey, monkeypatch):
    """Images in [-1, 1] span twice as much as images in [0, 1], and so does their noise."""
    model, prior = grey
    seen = []

    def run(denoiser, y, operator, sigma_y, timesteps, **options):
        seen.append(sigma_y)
        return METHODS["ddnm"].run(denoiser, y, operator, sigma_y, timesteps, **options)

    monkeypatch.setitem(METHODS, "watched", replace(METHODS["ddnm"], run=run))
    restore(model, prior.sample(1), Denoising(model.image_shape), method="watched", noise=0.15, steps=2)
    assert seen == [pytest.approx(0.3)]


def test_denoising_weighs_picture_and_prior_by_the_noise_given(grey):
    """The mean of many samples is nearer to y for less noise, as in the exact posterior."""
    model, prior = grey
    y = prior.sample(1) + 0.3
    operator = Denoising(model.image_shape)
    near, far = (
        restore(model, y, operator, method="ddrm", noise=sigma, samples=16, precision="fp32").mean
        for sigma in (0.02, 0.3)
    )
    assert (near - y).square().mean() < 0.2 * (far - y).square().mean()


@pytest.mark.parametrize("size", [(8, 8), (8, 12)], ids=["one tile", "two tiles"])
def test_each_image_keeps_its_label_in_every_batch(conditional_model, size):
    """Labels without symmetry, so that neither a shift nor a swap between batches or tiles goes unnoticed."""
    labels = [0, 1, 1, 2, 0]
    operator = Denoising((1, *size))
    y = torch.rand(5, 1, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    options = {"method": "ddrm", "noise": 0.3, "steps": 3, "precision": "fp32"}
    together = restore(conditional_model, y, operator, labels=labels, batch_size=4, samples=2, **options).samples
    for index, label in enumerate(labels):
        one = {"names": [str(index)], "batch_size": 4, "samples": 2, **options}
        alone, other = (
            restore(conditional_model, y[index : index + 1], operator, labels=chosen, **one).samples[0]
            for chosen in (label, (label + 1) % 3)
        )
        assert torch.allclose(together[index], alone, atol=1e-6)
        assert not torch.allclose(together[index], other, atol=1e-4)


def test_restore_takes_sampling_options_and_changes(conditional_model):
    y, operator = torch.zeros(2, 1, 8, 8), Denoising((1, 8, 8))
    options = SamplingOptions(steps=3, labels=[1, 2], seed=4, precision="fp32")
    given = restore(conditional_model, y, operator, options, noise=0.2, eta=0.5)
    spelled = restore(
        conditional_model, y, operator, steps=3, labels=[1, 2], seed=4, precision="fp32", noise=0.2, eta=0.5
    )
    assert torch.equal(given.samples, spelled.samples)
    with pytest.raises(UserError, match="no option 'gudance'; did you mean guidance"):
        restore(conditional_model, y, operator, noise=0.2, gudance=2.0)


def test_default_steps_are_the_methods_or_all_there_are(grey, conditional_model):
    assert METHODS["ddrm"].default_steps(grey[0].diffusion.schedule) == 20
    assert METHODS["ddnm"].default_steps(conditional_model.diffusion.schedule) == 50

"""Each method, step by step, against its paper's formula in float64, with a plain singular value decomposition."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas
from ddpm.restoration import operators as kernels
from ddpm.restoration.methods import METHODS, ddnm, ddrm, dps, jump_path, repaint
from ddpm.restoration.operators import CircularBlur, Denoising, Dense, Inpainting, WalshHadamard, superresolution
from ddpm.restoration.posterior import TiledDenoiser, TileGrid
from ddpm.samplers.denoiser import Denoiser
from experiments.restoration.gaussian import GaussianPrior, as_matrix

SHAPE = (2, 4, 6)
N = math.prod(SHAPE)
T = 50
BETAS = np.linspace(1e-3, 0.2, T)
ALPHAS_CUMPROD = np.append(np.cumprod(1 - BETAS), 1.0)  # the last one, at index -1, is the data's
GRID = [44, 29, 17, 6, 0, -1]  # with t = 0, which is still noisy
DIFFUSION = GaussianDiffusion(NoiseSchedule(make_betas("linear", T, 1e-3, 0.2)), prediction="x_0")


def crooked(x_t, t, labels):
    """A prediction of x_0 that is no linear function, and depends on t and on the neighbours."""
    return torch.sin(2 * x_t + 0.02 * t[:, None, None, None]) + 0.3 * x_t.roll((1, 2), (-2, -1))


DENOISER = Denoiser(crooked, DIFFUSION, clip=None)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stream(count=3, shape=SHAPE, seed=5):
    """(noise, drawn): noise() draws the next tensor and adds it, flattened in float64, to the list `drawn`."""
    generator, drawn = torch.Generator().manual_seed(seed), []

    def noise():
        found = torch.randn(count, *shape, generator=generator)
        drawn.append(found.flatten(1).double().numpy())
        return found

    return noise, drawn


def predicted(x, t):
    """x̂_0 of x_t, float64 (n, N)."""
    x = torch.from_numpy(x).unflatten(1, SHAPE)
    return crooked(x, torch.full((len(x),), float(t), dtype=torch.float64), None).flatten(1).numpy()


def operator_of(name):
    known = torch.tensor([[1, 0, 0, 1, 1, 0], [0, 1, 1, 0, 1, 1], [0, 0, 1, 0, 0, 1], [1, 1, 0, 1, 0, 0]]).bool()
    matrix = random(20, N, seed=9)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = torch.logspace(0.4, -1.6, 20)  # from 2.5 to 0.025: some directions are noisier than any x_t, others than none
    return {
        "denoising": lambda: Denoising(SHAPE),
        "inpainting": lambda: Inpainting(SHAPE, known),
        "average": lambda: superresolution(SHAPE, 2),
        "bicubic": lambda: superresolution(SHAPE, 2, "bicubic"),
        "hadamard": lambda: WalshHadamard(SHAPE, 13, 4),
        "blur": lambda: CircularBlur(SHAPE, torch.tensor([[0.1, 0.5, 0.1], [0.0, 0.2, 0.1]])),
        "dense": lambda: Dense(SHAPE, u * s @ v),
    }[name]()


def spectral(operator):
    """U (m, r), Σ (N,) and V (N, N) of H, float64; Σ is 0 where H sees nothing."""
    matrix = as_matrix(operator).numpy()
    u, s, vt = np.linalg.svd(matrix)
    padded = np.zeros(N)
    padded[: len(s)] = np.where(s > 1e-5 * s.max(), s, 0)
    return u, padded, vt.T


def measured(operator, y):
    """ȳ = Σ⁺Uᵀy, 0 where H sees nothing, and Σ and V."""
    u, s, v = spectral(operator)
    coordinates = np.zeros((len(y), N))
    rank = min(N, u.shape[0])
    coordinates[:, :rank] = y.flatten(1).double().numpy() @ u[:, :rank]
    return np.divide(coordinates, s, where=s > 0, out=np.zeros_like(coordinates)), s, v


def ddrm_by_the_paper(operator, y, sigma_y, drawn, eta, eta_b, start_from_y=True):
    """Kawar et al. 2022, eq. 7 and 8, in their own variance-exploding form: x = x_t/√ᾱ, σ_t = √((1-ᾱ)/ᾱ)."""
    y_bar, s, v = measured(operator, y)
    noise_of = np.divide(sigma_y, s, where=s > 0, out=np.full(N, np.inf))  # σ_y/s
    draws = iter(drawn)

    def sigma_of(t):
        return math.sqrt((1 - ALPHAS_CUMPROD[t]) / ALPHAS_CUMPROD[t])

    first = next(draws) @ v
    sigma = sigma_of(GRID[0])
    x = first / math.sqrt(ALPHAS_CUMPROD[GRID[0]])  # x_T itself is noise
    if start_from_y:
        x = sigma * first
        sees = (s > 0) & (noise_of <= sigma)
        x = np.where(sees, y_bar + np.sqrt(np.maximum(sigma**2 - noise_of**2, 0)) * first, x)
    for t, t_prev in pairwise(GRID):
        guess = predicted(x @ v.T * math.sqrt(ALPHAS_CUMPROD[t]), t) @ v
        before, sigma = sigma, sigma_of(t_prev)
        z = next(draws) @ v if t_prev >= 0 else np.zeros_like(x)
        for i in range(N):
            if s[i] == 0:
                mean = guess[:, i] + math.sqrt(1 - eta**2) * sigma * (x[:, i] - guess[:, i]) / before
                x[:, i] = mean + eta * sigma * z[:, i]
            elif sigma < noise_of[i]:
                mean = guess[:, i] + math.sqrt(1 - eta**2) * sigma * (y_bar[:, i] - guess[:, i]) / noise_of[i]
                x[:, i] = mean + eta * sigma * z[:, i]
            else:
                mean = (1 - eta_b) * guess[:, i] + eta_b * y_bar[:, i]
                x[:, i] = mean + math.sqrt(sigma**2 - (noise_of[i] * eta_b) ** 2) * z[:, i]
    return x @ v.T


def check(found, expected, tolerance=2e-4):
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found.flatten(1).double().numpy(), expected, atol=tolerance * scale)


@pytest.mark.parametrize(("eta", "eta_b"), [(0.85, 1.0), (0.3, 0.6), (0.0, 1.0), (1.0, 0.4)])
@pytest.mark.parametrize("sigma_y", [0.0, 0.15, 0.8])
@pytest.mark.parametrize("name", ["denoising", "inpainting", "average", "bicubic", "hadamard", "blur", "dense"])
def test_ddrm_is_its_papers_steps(name, sigma_y, eta, eta_b):
    operator = operator_of(name)
    y = random(3, *operator.measurement_shape, seed=1)
    noise, drawn = stream()
    found = ddrm(DENOISER, y, operator, sigma_y, GRID, noise=noise, eta=eta, eta_b=eta_b)
    assert len(drawn) == len(GRID) - 1
    check(found, ddrm_by_the_paper(operator, y, sigma_y, drawn, eta, eta_b), 2e-4 if name != "dense" else 2e-3)


def test_some_directions_of_the_dense_operator_are_noisier_than_x_t_and_some_are_not():
    """So that the test above takes both branches of eq. 8, and of eq. 7."""
    singulars = operator_of("dense").singulars.flatten()
    noise_of = 0.8 / singulars[singulars > 0].numpy()
    levels = [math.sqrt(1 / ALPHAS_CUMPROD[t] - 1) for t in GRID[:-1]]
    assert (noise_of > levels[0]).any()
    assert (noise_of < levels[-2]).sum() + (noise_of < levels[0]).sum() > 0
    assert any((noise_of > level).any() and (noise_of < level).any() for level in levels)


@pytest.mark.parametrize("eta", [0.85, 0.2])
@pytest.mark.parametrize("name", ["denoising", "inpainting", "average", "hadamard", "dense"])
def test_ddnm_with_noise_is_ddrms_step_from_pure_noise(name, eta):
    """Wang et al. 2023, eq. 17 to 19: DDNM+'s Σ_t and Φ_t are those of DDRM with η_b = 1."""
    operator = operator_of(name)
    y = random(3, *operator.measurement_shape, seed=1)
    noise, drawn = stream()
    found = ddnm(DENOISER, y, operator, 0.3, GRID, noise=noise, eta=eta)
    check(found, ddrm_by_the_paper(operator, y, 0.3, drawn, eta, 1.0, start_from_y=False), 2e-3)


def posterior(x_0, x_t, t, t_prev):
    """Mean and variance of q(x_{t_prev} | x_t, x_0), Ho et al. 2020, eq. 7, between any two timesteps."""
    now, before = ALPHAS_CUMPROD[t], ALPHAS_CUMPROD[t_prev]
    beta = 1 - now / before
    mean = math.sqrt(before) * beta / (1 - now) * x_0 + math.sqrt(1 - beta) * (1 - before) / (1 - now) * x_t
    return mean, beta * (1 - before) / (1 - now)


def walk(drawn, length, repeats, step):
    """Follow a jump path from x_T: step(x, t, t_next) downwards, q(x_up | x) upwards (Lugmayr et al. 2022, eq. 1)."""
    x = next(drawn)
    path = jump_path(len(GRID) - 1, length, repeats)
    for position, following in pairwise(path):
        t, t_next = GRID[position], GRID[following]
        if following < position:
            for each in range(position - 1, following - 1, -1):  # all the way up in single steps would be the same
                assert each == following
            kept = ALPHAS_CUMPROD[t_next] / ALPHAS_CUMPROD[t]
            x = math.sqrt(kept) * x + math.sqrt(1 - kept) * next(drawn)
        else:
            x = step(x, t, t_next)
    return x


@pytest.mark.parametrize(("length", "repeats"), [(1, 1), (1, 3), (2, 2)])
@pytest.mark.parametrize("eta", [0.85, 0.2])
@pytest.mark.parametrize("name", ["inpainting", "average", "blur", "hadamard"])
def test_ddnm_without_noise_replaces_the_range_space(name, eta, length, repeats):
    """Wang et al. 2023, eq. 13, algorithm 1, and its time travel."""
    operator = operator_of(name)
    matrix = as_matrix(operator).numpy()
    inverse = np.linalg.pinv(matrix, rcond=1e-5)
    y = random(3, *operator.measurement_shape, seed=1) * 0.5
    noise, drawn = stream()
    found = ddnm(DENOISER, y, operator, 0.0, GRID, noise=noise, eta=eta, travel_length=length, travel_repeats=repeats)
    draws, flat = iter(drawn), y.flatten(1).double().numpy()

    def step(x, t, t_next):
        guess = predicted(x, t)
        epsilon = (x - math.sqrt(ALPHAS_CUMPROD[t]) * guess) / math.sqrt(1 - ALPHAS_CUMPROD[t])
        fitted = guess - (guess @ matrix.T - flat) @ inverse.T
        if t_next < 0:
            return fitted
        signal, sigma = math.sqrt(ALPHAS_CUMPROD[t_next]), math.sqrt(1 - ALPHAS_CUMPROD[t_next])
        return signal * fitted + sigma * (eta * next(draws) + math.sqrt(1 - eta**2) * epsilon)

    check(found, walk(draws, length, repeats, step), 5e-3 if name == "blur" else 1e-3)
    assert next(draws, None) is None


@pytest.mark.parametrize(("length", "repeats"), [(1, 1), (1, 3), (2, 2), (10, 10)])
def test_repaint_takes_known_pixels_from_y_and_unknown_ones_from_the_posterior(length, repeats):
    """Lugmayr et al. 2022, eq. 8 and algorithm 1."""
    operator = operator_of("inpainting")
    known = operator.known.flatten().numpy()
    y = operator.H(random(3, *SHAPE, seed=1) * 0.5)
    noise, drawn = stream()
    found = repaint(DENOISER, y, operator, 0.0, GRID, noise=noise, jump_length=length, jump_repeats=repeats)
    draws, flat = iter(drawn), y.flatten(1).double().numpy()

    def step(x, t, t_next):
        guess = predicted(x, t)
        if t_next < 0:
            return np.where(known, flat, guess)
        mean, variance = posterior(guess, x, t, t_next)
        unknown = mean + math.sqrt(variance) * next(draws)
        at_level = math.sqrt(ALPHAS_CUMPROD[t_next]) * flat + math.sqrt(1 - ALPHAS_CUMPROD[t_next]) * next(draws)
        return np.where(known, at_level, unknown)

    check(found, walk(draws, length, repeats, step), 1e-3)
    assert next(draws, None) is None


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("name", ["average", "blur", "dense"])
def test_dps_steps_down_the_gradient_of_the_residual(name, scale):
    """Chung et al. 2023, algorithm 1; for a Gaussian prior x̂_0 = μ + K(x_t - √ᾱ μ), the gradient is -KHᵀr/‖r‖."""
    prior = GaussianPrior.smooth(SHAPE)
    operator = operator_of(name)
    matrix, mean, covariance = as_matrix(operator).numpy(), prior.mean.flatten().numpy(), prior.covariance.numpy()
    y = random(3, *operator.measurement_shape, seed=1)
    noise, drawn = stream()
    found = dps(prior.denoiser(DIFFUSION.schedule), y, operator, 0.0, GRID, noise=noise, scale=scale)
    draws, flat = iter(drawn), y.flatten(1).double().numpy()
    x = next(draws)
    for t, t_prev in pairwise(GRID):
        kept = ALPHAS_CUMPROD[t]
        gain = math.sqrt(kept) * covariance @ np.linalg.inv(kept * covariance + (1 - kept) * np.eye(N))
        guess = mean + (x - math.sqrt(kept) * mean) @ gain.T
        misfit = flat - guess @ matrix.T
        gradient = -misfit @ matrix @ gain / np.linalg.norm(misfit, axis=1, keepdims=True)
        step, variance = posterior(guess, x, t, t_prev)
        if t_prev >= 0:
            step = step + math.sqrt(variance) * next(draws)
        x = step - scale * gradient
    check(found, x, 5e-4)
    assert next(draws, None) is None


def test_methods_start_from_their_published_defaults():
    """DDRM: 20 steps, η 0.85, η_b 1; RePaint: 250 steps, jumps of 10, 10 times; DPS: 1,000 steps; DDNM: 100, η 0.85."""
    assert {name: method.steps for name, method in METHODS.items()} == {
        "ddrm": 20,
        "ddnm": 100,
        "repaint": 250,
        "dps": 1000,
    }
    assert METHODS["ddrm"].options == {"eta": 0.85, "eta_b": 1.0}
    assert METHODS["repaint"].options == {"jump_length": 10, "jump_repeats": 10}
    assert METHODS["ddnm"].options["eta"] == 0.85


def tile_starts(image, tile):
    """The fewest evenly spaced tiles that overlap by half."""
    count = 1
    while count > 1 or image > tile:
        gaps = 0 if count == 1 else (image - tile) / (count - 1)
        if count > 1 and gaps <= tile // 2:
            return [round(i * gaps) for i in range(count)]
        count += 1
    return [0]


@pytest.mark.parametrize(("size", "tile"), [((9, 20), (4, 6)), ((4, 31), (4, 10)), ((16, 6), (5, 6)), ((7, 7), (7, 7))])
def test_tiles_are_averaged_with_a_smooth_window(size, tile):
    """Pixel by pixel: weights sin²(π(i+½)/n) of each side; one tile after another, all images of a tile together."""
    grid = TileGrid(size, tile)
    assert grid.corners == [
        (top, left) for top in tile_starts(size[0], tile[0]) for left in tile_starts(size[1], tile[1])
    ]
    given = []

    def network(x, t, labels):
        given.append((x, labels))
        return x * labels[:, None, None, None] + torch.arange(len(x))[:, None, None, None] / 10

    labels = torch.tensor([1.0, -2.0, 3.0]).repeat(len(grid))
    denoiser = Denoiser(network, DIFFUSION, labels=labels, clip=None)
    x_t = random(3, 2, *size)
    found = TiledDenoiser(denoiser, grid)(x_t, 17)
    total, weight = np.zeros(x_t.shape), np.zeros(size)
    for number, (top, left) in enumerate(grid.corners):
        for row in range(tile[0]):
            for column in range(tile[1]):
                w = math.sin(math.pi * (row + 0.5) / tile[0]) ** 2 * math.sin(math.pi * (column + 0.5) / tile[1]) ** 2
                weight[top + row, left + column] += w
                for image, label in enumerate((1.0, -2.0, 3.0)):
                    value = x_t[image, :, top + row, left + column].numpy() * label + (3 * number + image) / 10
                    total[image, :, top + row, left + column] += w * value
    np.testing.assert_allclose(found.x_0, total / weight, atol=1e-4)
    kept = ALPHAS_CUMPROD[17]
    epsilon = (x_t.numpy() - math.sqrt(kept) * total / weight) / math.sqrt(1 - kept)
    np.testing.assert_allclose(found.epsilon, epsilon, atol=1e-4)


@pytest.mark.parametrize("degrees", [0, 30, 90, 137, -20])
@pytest.mark.parametrize("length", [1, 4, 7.5])
def test_motion_kernel_is_the_path_of_the_camera(degrees, length):
    """Its centre of mass is the middle, its spread that of `length` pixels in the direction, upwards for 90°."""
    kernel = kernels.motion(length, degrees).numpy()
    side = len(kernel)
    rows, columns = np.mgrid[:side, :side] - side // 2
    assert kernel.sum() == pytest.approx(1)
    assert (kernel * rows).sum() == pytest.approx(0, abs=1e-9)
    assert (kernel * columns).sum() == pytest.approx(0, abs=1e-9)
    along = columns * math.cos(math.radians(degrees)) - rows * math.sin(math.radians(degrees))
    across = columns * math.sin(math.radians(degrees)) + rows * math.cos(math.radians(degrees))
    path = (length - 1) ** 2 / 12  # the variance of a uniform position; bilinear spreading adds at most 1/4
    assert path - 0.01 <= (kernel * along**2).sum() <= path * 1.05 + 0.26
    assert (kernel * across**2).sum() <= 0.26


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.4])
def test_gaussian_kernel_is_the_density_up_to_three_deviations(sigma):
    kernel = kernels.gaussian(sigma).numpy()
    reach = max(1, math.ceil(3 * sigma))
    density = np.array([math.exp(-(i**2) / (2 * sigma**2)) for i in range(-reach, reach + 1)])
    np.testing.assert_allclose(kernel, density / density.sum(), rtol=1e-12)


@pytest.mark.parametrize("name", ["denoising", "inpainting", "average", "bicubic", "hadamard", "blur", "dense"])
def test_pseudo_inverse_is_that_of_the_matrix(name):
    operator = operator_of(name)
    y = random(2, *operator.measurement_shape, seed=4)
    expected = np.linalg.pinv(as_matrix(operator).numpy(), rcond=1e-5) @ y.flatten(1).double().numpy().T
    check(operator.H_pinv(y), expected.T, 1e-3)
    assert int(operator.seen.sum()) == int((spectral(operator)[1] > 0).sum())

"""Editing of Gaussian images, for which the ODE's solution and every posterior are known."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from ddpm.common.errors import UserError
from ddpm.common.fidelity import ssim
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas
from ddpm.editing import (
    Editor,
    coarse_to_fine,
    denoising_loss,
    fidelity_curve,
    generate,
    interpolate,
    invert,
    reconstructions,
    round_trip,
    sdedit,
    translate,
)
from ddpm.editing.editor import timesteps_from
from ddpm.editing.inversion import angles_to, flow, timestep_of
from ddpm.model import Model
from experiments.restoration.gaussian import GaussianPrior

SHAPE = (1, 12, 12)


class ClosedForm(nn.Module):
    """E[x_0|x_t] of Gaussian images; with classes, each has a prior of its own and the last is the null class."""

    def __init__(self, priors, schedule):
        super().__init__()
        self.networks = [prior.denoiser(schedule).network for prior in priors]
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x_t, t, labels):
        if labels is None:
            return self.networks[0](x_t, t, None)
        rows = [self.networks[int(label)](x_t[i : i + 1], t[i : i + 1], None) for i, label in enumerate(labels)]
        return torch.cat(rows)


def model_of(*priors, schedule="linear", timesteps=1000):
    noise = NoiseSchedule(make_betas(schedule, timesteps))
    names = [f"class {i}" for i in range(len(priors) - 1)] if len(priors) > 1 else None
    process = GaussianDiffusion(noise, prediction="x_0")
    return Model(
        ClosedForm(priors, noise), process, image_shape=SHAPE, class_names=names, null_label=names and len(names)
    )


PRIOR = GaussianPrior.smooth(SHAPE, deviation=0.3)
EDITOR = Editor(model_of(PRIOR), precision="fp32", clip=None, seed=3)


def exact_latent(prior, x_0, alpha_bar):
    """The probability-flow ODE of a Gaussian only stretches: each eigen-direction by √(ᾱλ + 1-ᾱ)/√λ."""
    eigenvalues, basis = torch.linalg.eigh(prior.covariance)
    centred = (x_0.double() - prior.mean).flatten(1) @ basis
    stretched = centred * ((alpha_bar * eigenvalues + 1 - alpha_bar) / eigenvalues).sqrt()
    return math.sqrt(alpha_bar) * prior.mean + (stretched @ basis.T).unflatten(1, prior.mean.shape)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_invert_solves_the_ode(schedule):
    prior = GaussianPrior.smooth(SHAPE, deviation=0.5, reach=0.8)  # well conditioned: float32 can follow it
    editor = Editor(model_of(prior, schedule=schedule))
    x = prior.sample(3)
    last = editor.model.diffusion.schedule.alpha_bar(999)
    expected = exact_latent(prior, x, last)
    errors = [float((invert(editor, x, evaluations=n) - expected).square().mean().sqrt()) for n in (40, 80, 400)]
    assert errors[2] < 5e-3
    assert errors[1] < errors[0] / 2
    first_order = float((invert(editor, x, evaluations=80, order=1) - expected).square().mean().sqrt())
    assert errors[1] < first_order / 3


@pytest.mark.parametrize(("order", "ratio"), [(1, 2), (2, 4)])
def test_flow_has_its_order_of_accuracy(order, ratio):
    """Twice the steps: half the error for DDIM, a quarter for the midpoint rule."""
    prior = GaussianPrior.smooth(SHAPE, deviation=0.5, reach=0.8)
    denoiser = prior.denoiser(NoiseSchedule(make_betas("cosine", 1000)))
    x = prior.sample(4)
    angles = angles_to(denoiser.schedule, 0.5, 12)[2:]  # without t < 0, where no network is defined
    signal = math.cos(angles[0])
    x_start = exact_latent(prior, x, signal**2).float()
    expected = exact_latent(prior, x, math.cos(angles[-1]) ** 2)

    def error(splits):
        fine = [a + (b - a) * i / splits for a, b in pairwise(angles) for i in range(splits)]
        found = flow(denoiser, x_start, [*fine, angles[-1]], order)
        return float((found - expected).square().mean().sqrt())

    assert error(4) / error(8) == pytest.approx(ratio, rel=0.2)


def test_round_trip_of_order_two_is_more_accurate():
    prior = GaussianPrior.smooth(SHAPE, deviation=0.5, reach=0.8)
    x = prior.sample(4)
    ddim, midpoint = (round_trip(Editor(model_of(prior)), x, evaluations=200, order=order) for order in (1, 2))
    assert midpoint.error < ddim.error / 10
    assert midpoint.error < 2 / 127.5
    assert ddim.largest >= ddim.error
    assert torch.allclose(midpoint.images, x, atol=4 * midpoint.largest)


def test_flow_takes_the_expected_evaluations():
    calls = []
    denoiser = PRIOR.denoiser()

    class Counting:
        schedule, diffusion = denoiser.schedule, denoiser.diffusion

        def __call__(self, x_t, t):
            calls.append(t)
            return denoiser(x_t, t)

    for order in (1, 2):
        calls.clear()
        flow(Counting(), PRIOR.sample(1), angles_to(denoiser.schedule, 1.0, 10), order)
        assert len(calls) == 10 * order


def test_invert_ignores_guidance_and_clipping():
    x = PRIOR.sample(2)
    clipped = Editor(EDITOR.model, clip="static", precision="fp32")
    assert torch.equal(invert(clipped, x), invert(EDITOR, x))


def test_reconstructions_get_worse_with_depth():
    trips = reconstructions(EDITOR, PRIOR.sample(4), depths=(0.05, 0.3, 1.0), evaluations=40, order=1)
    assert [trip.depth for trip in trips] == [0.05, 0.3, 1.0]
    assert trips[0].psnr > trips[-1].psnr


def test_timestep_of_inverts_the_schedule():
    schedule = NoiseSchedule(make_betas("linear", 1000))
    for t in (0, 10, 500, 999):
        signal, sigma = schedule.alpha_sigma(t)
        assert timestep_of(schedule, math.atan2(sigma, signal)) == pytest.approx(t, abs=1e-3)
    assert timestep_of(schedule, 0.0) == -1


def test_sdedit_strength_goes_from_the_image_to_the_prior():
    """Strength 1 samples the prior; a small strength stays near the image."""
    x = PRIOR.sample(1, seed=5).expand(200, *SHAPE)
    fresh = sdedit(EDITOR, x, 1.0, sampler="ddim", steps=60)
    spread = (fresh - PRIOR.mean.float()).square().mean()
    assert float(spread / PRIOR.covariance.diagonal().mean()) == pytest.approx(1, abs=0.15)
    assert (sdedit(EDITOR, x, 0.05, steps=60) - x).square().mean() < 0.2 * spread
    assert torch.equal(sdedit(EDITOR, x, 0.0), x)


def test_sdedit_depends_only_on_seed_and_index():
    x = PRIOR.sample(5)
    whole = sdedit(EDITOR, x, 0.4, steps=20)
    in_parts = sdedit(Editor(EDITOR.model, precision="fp32", clip=None, seed=3, batch_size=2), x, 0.4, steps=20)
    assert torch.allclose(whole, in_parts, atol=1e-5)
    assert not torch.allclose(whole, sdedit(Editor(EDITOR.model, seed=4, clip=None), x, 0.4, steps=20), atol=1e-2)


def test_timesteps_from_strength():
    schedule = NoiseSchedule(make_betas("linear", 1000))
    grid = timesteps_from(schedule, 0.3, 1000)
    assert grid[0] == 299
    assert len(grid) == 301
    assert grid[-1] == -1
    assert timesteps_from(schedule, 0.0, 10) == [-1.0]


def test_fidelity_curve_trades_fidelity_for_realism():
    """Images unlike the prior: more strength moves them away from the input and towards the prior."""
    strange = PRIOR.sample(16) + 0.3 * torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(0))
    points = fidelity_curve(EDITOR, strange, (0.2, 0.5, 1.0), steps=40)
    assert [point.strength for point in points] == [0, 0.2, 0.5, 1.0]
    assert math.isinf(points[0].psnr)
    assert points[1].psnr > points[2].psnr > points[3].psnr
    assert points[1].ssim > points[3].ssim
    for point in points[1:]:
        assert point.ssim == pytest.approx(float(ssim(point.images, strange).mean()))
    assert points[0].denoising_loss > points[2].denoising_loss
    real = denoising_loss(EDITOR, PRIOR.sample(16, seed=1))
    assert points[3].denoising_loss == pytest.approx(real, rel=0.25)  # the edited images are clipped to [-1, 1]


@pytest.mark.parametrize("timesteps", [2, 4])
def test_denoising_loss_is_finite_for_few_timesteps(timesteps):
    editor = Editor(model_of(PRIOR, timesteps=timesteps), precision="fp32")
    assert 0 < denoising_loss(editor, PRIOR.sample(2)) < math.inf


def test_interpolate_goes_from_the_first_to_the_second():
    first, second = PRIOR.sample(2, seed=8)
    row = interpolate(EDITOR, first, second, [0, 0.25, 0.5, 0.75, 1], depth=0.15, steps=100)
    assert row.shape == (5, *SHAPE)
    towards = [(image - first).norm() - (image - second).norm() for image in row]
    assert all(a < b for a, b in pairwise(towards))


def test_interpolate_keeps_the_noise_level():
    """At depth 1 every λ is a new sample, with the same variance in the middle as at the ends."""
    spreads = []
    for seed in range(40):
        first, second = PRIOR.sample(2, seed=seed)
        row = interpolate(
            Editor(EDITOR.model, seed=seed, clip=None, precision="fp32"),
            first,
            second,
            [0, 0.5],
            depth=1.0,
            sampler="ddim",
            steps=20,
        )
        spreads.append((row - PRIOR.mean.float()).square().mean((1, 2, 3)))
    ends, middle = torch.stack(spreads).mean(0)
    assert float(middle / ends) == pytest.approx(1, abs=0.3)


def test_interpolate_shares_noise_between_weights():
    first, second = PRIOR.sample(2, seed=8)
    row = interpolate(EDITOR, first, second, [0.5, 0.501], depth=0.7, steps=50)
    assert (row[0] - row[1]).abs().max() < 0.02


def test_coarse_to_fine_at_depth_zero_blends():
    first, second = PRIOR.sample(2, seed=8)
    rows = coarse_to_fine(EDITOR, first, second, [0, 0.5, 1], [0.0, 0.5], steps=20)
    assert rows.shape == (2, 3, *SHAPE)
    assert torch.allclose(rows[0, 1], (first + second) / 2, atol=1e-6)


def test_translate_moves_the_class_mean():
    """The classes differ only in their mean, so an image keeps its deviation from it."""
    shift = torch.zeros(SHAPE, dtype=torch.float64)
    shift[..., 6:] = 0.4
    base = GaussianPrior.smooth(SHAPE, deviation=0.2)
    other = GaussianPrior(base.mean + shift, base.covariance)
    editor = Editor(model_of(base, other, base, schedule="cosine"), clip=None, precision="fp32")
    x = base.sample(1)
    moved = translate(editor, x, 0, 1, evaluations=60)
    assert (moved - (x + shift.float())).abs().mean() < 0.03
    assert (translate(editor, x, 0, 0, evaluations=60) - x).abs().mean() < 0.02
    by_name = translate(editor, x, "class 0", "class 1", evaluations=60)
    assert torch.allclose(moved, by_name)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda x: sdedit(EDITOR, x, 1.5), "strength must be between"),
        (lambda x: sdedit(EDITOR, x, float("nan")), "strength must be between"),
        (lambda x: sdedit(EDITOR, x, 0.5, steps=0), "at least 1 step"),
        (lambda x: sdedit(EDITOR, x, 0.5, sampler="dimm"), "no sampler"),
        (lambda x: sdedit(EDITOR, x[..., :8], 0.5), "this model knows"),
        (lambda x: sdedit(EDITOR, x[:0], 0.5), "no images to edit"),
        (lambda x: invert(EDITOR, x, depth=0.0), "depth must be"),
        (lambda x: invert(EDITOR, x, evaluations=1), "at least 2"),
        (lambda x: generate(EDITOR, x, evaluations=0, order=1), "at least 1"),
        (lambda x: translate(EDITOR, x, 0, 1), "without classes"),
        (lambda x: sdedit(Editor(EDITOR.model, labels=1), x, 0.5), "without classes"),
    ],
)
def test_editing_refuses_bad_input(act, words):
    with pytest.raises(UserError, match=words):
        act(PRIOR.sample(2))


@pytest.mark.parametrize("order", [1, 2])
def test_flow_is_exact_if_the_prediction_is_constant(order):
    """All images are equal: x moves on a circle, and one step of any length is exact."""
    point = GaussianPrior(PRIOR.mean, torch.zeros_like(PRIOR.covariance))
    denoiser = point.denoiser()
    x_0, epsilon = PRIOR.mean.float()[None], torch.randn(1, *SHAPE)
    found = flow(denoiser, math.cos(0.3) * x_0 + math.sin(0.3) * epsilon, [0.3, 1.2], order)
    assert torch.allclose(found, math.cos(1.2) * x_0 + math.sin(1.2) * epsilon, atol=1e-5)


def test_each_image_keeps_its_label_in_every_batch(conditional_model):
    """Labels without symmetry, so that neither a shift nor a swap between batches goes unnoticed."""
    labels = [0, 1, 1, 2, 0]
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    options = {"sampler": "ddim", "steps": 4, "precision": "fp32"}
    together = sdedit(Editor(conditional_model, labels=labels, batch_size=2, **options), images, 0.8)
    for label in range(3):
        same = sdedit(Editor(conditional_model, labels=label, batch_size=2, **options), images, 0.8)
        for index, own in enumerate(labels):
            assert torch.allclose(same[index], together[index], atol=1e-4) == (own == label)


def test_editor_defaults_and_changes():
    editor = Editor(EDITOR.model, seed=2)
    assert (editor.options.sampler, editor.options.steps, editor.options.seed) == ("ancestral", 100, 2)
    x = PRIOR.sample(2)
    by_editor = sdedit(editor.with_options(sampler="ddim", steps=10), x, 0.5)
    assert torch.equal(by_editor, sdedit(editor, x, 0.5, sampler="ddim", steps=10))
    with pytest.raises(UserError, match="no option 'step'"):
        sdedit(editor, x, 0.5, step=10)

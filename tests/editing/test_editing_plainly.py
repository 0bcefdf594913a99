"""Edits against the same edits written plainly in float64, one image at a time, with inputs that have no symmetry."""

import inspect
import math
from itertools import pairwise

import numpy as np
import plain_sampler as plain
import pytest
import torch
from plain_sampler import CLASSES, SHAPE, Plain, Waves, draws, wave_model
from torch import Tensor

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
from ddpm.editing.editor import LOSS_DEPTHS, STRENGTHS, timesteps_from
from ddpm.editing.inversion import DEPTHS, angles_to, steps_within

T = 40
KEPT = plain.alphas_cumprod("linear", T, 1e-3, 0.25)
LABELS = [2, 0, 1, 1, 0]


MODEL = wave_model(KEPT)
EXACT = Waves().double().requires_grad_(False)
IMAGES = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(1)) * 1.8 - 0.7


def falling(strength: float, steps: int) -> list[float]:
    """strength·T - 1 … -1 in the fraction `strength` of the steps."""
    taken, first = max(1, round(strength * steps)), strength * T - 1
    return [first - i * (first + 1) / taken for i in range(taken)] + [-1.0]


def noised(x_0: Tensor, t: float, noise: Tensor) -> Tensor:
    signal, sigma = plain.signal_noise(KEPT, t)
    return signal * x_0.double() + sigma * noise


def close(found: Tensor, expected: Tensor, tolerance: float = 2e-4) -> None:
    assert (found.double() - expected).abs().max() < tolerance


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize(
    ("options", "strength", "steps"),
    [
        ({"sampler": "ancestral"}, 0.62, 17),
        ({"sampler": "ancestral"}, 0.59, 40),  # 23.6 steps are 24, so one of them ends between 0 and the data
        ({"sampler": "ddim", "eta": 0.6, "guidance": 2.5}, 1.0, 9),
        ({"sampler": "ddim", "guidance": 1.7, "guidance_rescale": 0.7, "clip": "static"}, 0.31, 30),
        ({"sampler": "unipc"}, 0.8, 10),
        ({"sampler": "dpm++sde", "clip": "dynamic"}, 0.45, 20),
        ({"sampler": "heun"}, 0.03, 7),
    ],
)
def test_sdedit_is_noising_and_sampling(options, strength, steps, batch_size):
    given = {"sampler": "ancestral", "clip": None, "labels": LABELS, **options}
    editor = Editor(MODEL, seed=5, steps=steps, batch_size=batch_size, **given)
    found = sdedit(editor, IMAGES, strength)
    words = {key: value for key, value in given.items() if key not in ("labels", "guidance_rescale")}
    case = Plain(EXACT, rescale=given.get("guidance_rescale", 0.0), **words)
    timesteps = falling(strength, steps)
    assert timesteps_from(MODEL.diffusion.schedule, strength, steps) == pytest.approx(timesteps, abs=1e-9)
    for i, x_0 in enumerate(IMAGES):
        first, *rest = draws(5, i, len(timesteps))
        rows = plain.sample(case, KEPT, noised(x_0, timesteps[0], first), timesteps, rest, LABELS[i])
        close(found[i], rows[-1][2].clamp(-1, 1))


def test_an_edit_takes_the_editors_options_unless_changed():
    by_editor = Editor(MODEL, seed=5, steps=6, sampler="ddim", labels="b", guidance=2.0)
    by_call = sdedit(Editor(MODEL), IMAGES, 0.7, seed=5, steps=6, sampler="ddim", labels=1, guidance=2.0)
    assert torch.equal(sdedit(by_editor, IMAGES, 0.7), by_call)
    null = sdedit(Editor(MODEL, sampler="ddim", clip=None, steps=6), IMAGES[:1], 0.7)[0]  # no labels: no class
    timesteps = falling(0.7, 6)
    x_t = noised(IMAGES[0], timesteps[0], draws(0, 0, 1)[0])
    close(null, plain.sample(Plain(EXACT), KEPT, x_t, timesteps, [], CLASSES)[-1][2].clamp(-1, 1))


def test_timesteps_of_a_strength():
    schedule = MODEL.diffusion.schedule
    for strength, steps in ((0.3, 100), (1.0, 3), (0.77, 13), (0.026, 5), (0.5, 1)):
        expected = falling(strength, min(steps, T))
        assert timesteps_from(schedule, strength, steps) == pytest.approx(expected, abs=1e-9)
    assert timesteps_from(schedule, 1.0, None) == list(range(T - 1, -2, -1))
    assert timesteps_from(schedule, 0.024, 5) == [-1.0]  # less than one timestep
    assert timesteps_from(schedule, 0.025, 5) == [0.0, -1.0]


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_interpolation_mixes_images_and_scaled_noise(batch_size):
    """x̄_t = √ᾱ ((1-λ) x + λ x') + √(1-ᾱ) ((1-λ) ε + λ ε') / √((1-λ)² + λ²), and the same noise for every λ."""
    weights, depth, steps = [0.0, 0.3, 0.85, 1.0], 0.7, 11
    editor = Editor(MODEL, seed=7, labels=[0, 2, 1, 2], clip=None, batch_size=batch_size)
    found = interpolate(editor, IMAGES[0], IMAGES[1], weights, depth=depth, steps=steps)
    timesteps, ends = falling(depth, steps), [draws(7, index, 1)[0] for index in (1, 2)]
    case = Plain(EXACT, sampler="ancestral")
    for i, weight in enumerate(weights):
        mixed = ((1 - weight) * ends[0] + weight * ends[1]) / math.sqrt((1 - weight) ** 2 + weight**2)
        x_0 = (1 - weight) * IMAGES[0] + weight * IMAGES[1]
        noises = draws(7, 0, len(timesteps))
        rows = plain.sample(case, KEPT, noised(x_0, timesteps[0], mixed), timesteps, noises, [0, 2, 1, 2][i])
        close(found[i], rows[-1][2].clamp(-1, 1))
    rows = coarse_to_fine(editor, IMAGES[0], IMAGES[1], weights, [0.3, depth], steps=steps)
    assert torch.equal(rows[1], found)
    assert torch.equal(rows[0], interpolate(editor, IMAGES[0], IMAGES[1], weights, depth=0.3, steps=steps))
    half = interpolate(editor, IMAGES[0], IMAGES[1], weights, steps=steps)
    assert torch.equal(half, interpolate(editor, IMAGES[0], IMAGES[1], weights, depth=0.5, steps=steps))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_denoising_loss_is_the_training_loss_at_seven_depths(batch_size):
    """Unguided and unlimited whatever the editor's options, with the noise of the next seed."""
    assert LOSS_DEPTHS == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    editor = Editor(MODEL, seed=11, labels=LABELS, guidance=3.0, clip="static", batch_size=batch_size)
    losses = []
    for i, x_0 in enumerate(IMAGES):
        for depth, noise in zip((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), draws(12, i, 7), strict=True):
            t = round(depth * T) - 1
            x_t = noised(x_0, t, noise)
            output = EXACT(x_t[None], torch.tensor([float(t)]), torch.tensor(LABELS[i : i + 1]))[0]
            losses.append(float(((output - noise) ** 2).mean()))
    assert denoising_loss(editor, IMAGES) == pytest.approx(np.mean(losses), rel=1e-5)


def test_fidelity_curve_measures_each_strength():
    editor = Editor(MODEL, seed=2, labels=LABELS, steps=12)
    points = fidelity_curve(editor, IMAGES, (0.6, 0.0, 0.25), sampler="ddim")
    assert [point.strength for point in points] == [0.0, 0.6, 0.25]
    assert torch.equal(points[0].images, IMAGES)
    for point in points[1:]:
        assert torch.equal(point.images, sdedit(editor, IMAGES, point.strength, sampler="ddim"))
        error = ((point.images.double() - IMAGES.double()) ** 2).mean((1, 2, 3))
        assert point.psnr == pytest.approx(float((10 * torch.log10(4 / error)).mean()), rel=1e-6)
        assert math.isnan(point.ssim)  # smaller than its window
        assert point.denoising_loss == pytest.approx(denoising_loss(editor, point.images), rel=1e-6)
    default = fidelity_curve(editor, IMAGES[:1], labels=0, steps=1)
    assert default[3].denoising_loss == denoising_loss(editor.with_options(labels=0), default[3].images)
    assert [point.strength for point in default] == [0.0, *STRENGTHS] == [i / 10 for i in range(11)]


# --- inversion: the flow, plainly


def turned(case: Plain, x: Tensor, angles: list[float], order: int, label: int) -> Tensor:
    """DDIM or the midpoint rule from angle to angle (cos φ = √ᾱ)."""

    def predict(x: Tensor, angle: float):
        low, high = 0.0, T - 1.0
        for _ in range(100):
            t = (low + high) / 2
            low, high = (t, high) if plain.signal_noise(KEPT, t)[1] < math.sin(angle) else (low, t)
        return plain.predict(case, KEPT, x, low, label)

    def velocity(seen, angle: float) -> Tensor:
        return math.cos(angle) * seen[1] - math.sin(angle) * seen[0]

    seen = None
    for start, end in pairwise(angles):
        delta, middle = end - start, (start + end) / 2
        if order == 1:
            x = math.cos(delta) * x + math.sin(delta) * velocity(predict(x, start), start)
            continue
        guesses = [predict(x, start)] if seen is None else [seen]
        while len(guesses) < (2 if seen is None else 3):
            turned_half = (x + math.sin(delta / 2) * velocity(guesses[-1], middle)) / math.cos(delta / 2)
            guesses.append(predict(turned_half, middle))
        seen = guesses[-1]
        x = x + 2 * math.sin(delta / 2) * velocity(seen, middle)
    return x


def rising(depth: float, steps: int) -> list[float]:
    last = math.asin(plain.signal_noise(KEPT, max(0.0, depth * T - 1))[1])
    return [last * i / steps for i in range(steps + 1)]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize(("order", "evaluations", "steps"), [(1, 5, 5), (2, 7, 3), (2, 2, 1), (1, 1, 1)])
@pytest.mark.parametrize("depth", [1.0, 0.6, 0.01])
def test_inversion_and_generation_follow_the_formulas(depth, order, evaluations, steps, batch_size):
    editor = Editor(MODEL, labels=LABELS, guidance=1.6, clip="static", batch_size=batch_size)
    how = {"depth": depth, "evaluations": evaluations, "order": order}
    assert steps_within(evaluations, order) == steps
    assert angles_to(MODEL.diffusion.schedule, depth, steps) == pytest.approx(rising(depth, steps), abs=1e-9)
    latents = invert(editor, IMAGES, **how)
    images = generate(editor, latents, **how)
    for i, x_0 in enumerate(IMAGES):
        latent = turned(Plain(EXACT), x_0.double(), rising(depth, steps), order, LABELS[i])
        close(latents[i], latent)
        guided = Plain(EXACT, guidance=1.6, clip="static")
        close(images[i], turned(guided, latents[i].double(), rising(depth, steps)[::-1], order, LABELS[i]), 1e-3)


def test_an_inversion_computes_in_float32_whatever_the_editor_does(conditional_model):
    images = torch.rand(2, *conditional_model.image_shape) * 2 - 1
    found, exact, coarse = (
        {
            "invert": invert(editor, images, evaluations=6),
            "round_trip": round_trip(editor, images, evaluations=6).images,
            "generate": generate(editor, images, evaluations=6),
        }
        for editor in (
            Editor(conditional_model, precision="bf16", guidance=1.5, labels=1),
            Editor(conditional_model, precision="fp32", labels=1, clip=None),
            Editor(conditional_model, precision="fp32", labels=1, guidance=1.5),
        )
    )
    assert torch.equal(found["invert"], exact["invert"])
    assert torch.equal(found["round_trip"], exact["round_trip"])
    assert not torch.equal(found["generate"], coarse["generate"])  # bfloat16, as asked


def test_a_round_trip_spends_half_its_evaluations_each_way():
    editor = Editor(MODEL, labels=LABELS, guidance=3.0, clip="static", seed=4)
    plainly = Editor(MODEL, labels=LABELS, clip=None)
    for order, evaluations in ((1, 7), (2, 9)):
        how = {"depth": 0.8, "evaluations": evaluations // 2, "order": order}
        expected = generate(plainly, invert(plainly, IMAGES, **how), **how)
        trip = round_trip(editor, IMAGES, depth=0.8, evaluations=evaluations, order=order)
        assert torch.equal(trip.images, expected)
        error = expected.double() - IMAGES.double()
        assert trip.depth == 0.8
        assert trip.error == pytest.approx(float((error**2).mean().sqrt()), rel=1e-5)
        assert trip.largest == pytest.approx(float(error.abs().max()), rel=1e-5)
        assert trip.psnr == pytest.approx(float((10 * torch.log10(4 / (error**2).mean((1, 2, 3)))).mean()), rel=1e-5)
    trips = reconstructions(editor, IMAGES, (0.3, 0.8), evaluations=9)
    assert torch.equal(trips[1].images, trip.images)
    assert [trip.depth for trip in reconstructions(editor, IMAGES[:1].expand(5, *SHAPE), evaluations=4)] == list(DEPTHS)
    assert list(DEPTHS) == [i / 10 for i in range(1, 11)]


@pytest.mark.parametrize("clip", ["static", None])
def test_translation_inverts_as_one_class_and_generates_as_another(clip):
    """What leaves [-1, 1] without a limit to x_0 is cut off at the end."""
    editor, plain = Editor(MODEL, guidance=2.0, clip=clip, seed=4), Plain(EXACT, guidance=2.0, clip=clip)
    source, target, how = [0, 1, 2, 0, 1], ["c", "b", "a", "b", "c"], {"depth": 0.7, "evaluations": 6, "order": 1}
    found, beyond = translate(editor, IMAGES, source, target, **how), []
    for i, (start, end) in enumerate(zip(source, [2, 1, 0, 1, 2], strict=True)):
        latent = turned(Plain(EXACT), IMAGES[i].double(), rising(0.7, 6), 1, start)
        back = turned(plain, latent, rising(0.7, 6)[::-1], 1, end)
        beyond.append(bool((back.abs() > 1.01).any()))
        close(found[i], back.clamp(-1, 1), 1e-3)
    assert any(beyond) == (clip is None)
    from_none = translate(editor, IMAGES[:1], None, 1, **how)[0]
    latent = turned(Plain(EXACT), IMAGES[0].double(), rising(0.7, 6), 1, CLASSES)
    back = turned(plain, latent, rising(0.7, 6)[::-1], 1, 1)
    close(from_none, back.clamp(-1, 1), 1e-3)


def test_defaults_of_an_inversion():
    """100 evaluations of order 2 to the full depth; a round trip takes 200."""
    one = Editor(MODEL, labels=1)
    x = IMAGES[:1]
    latents = invert(one, x)
    assert torch.equal(latents, invert(one, x, depth=1.0, evaluations=100, order=2))
    assert torch.equal(generate(one, latents), generate(one, latents, depth=1.0, evaluations=100, order=2))
    assert torch.equal(round_trip(one, x).images, round_trip(one, x, depth=1.0, evaluations=200, order=2).images)
    published = {"depth": 1.0, "evaluations": 100, "order": 2}
    for function, changed in ((invert, {}), (generate, {}), (translate, {}), (round_trip, {"evaluations": 200})):
        given = {name: given.default for name, given in inspect.signature(function).parameters.items()}
        assert {name: given[name] for name in published} == published | changed
    default = translate(one, x, 0, 2)
    assert torch.equal(default, translate(one, x, 0, 2, depth=1.0, evaluations=100, order=2))


@pytest.mark.parametrize("order", [1, 2])
def test_reconstructions_are_round_trips_of_the_same_settings(order):
    editor = Editor(MODEL, labels=1)
    trips = reconstructions(editor, IMAGES[:2], (0.3, 0.8), evaluations=12, order=order)
    for trip, depth in zip(trips, (0.3, 0.8), strict=True):
        alone = round_trip(editor, IMAGES[:2], depth=depth, evaluations=12, order=order)
        assert torch.equal(trip.images, alone.images)
        assert (trip.depth, trip.error, trip.psnr) == (alone.depth, alone.error, alone.psnr)


def test_the_last_images_are_edited_in_a_batch_as_large_as_the_others(monkeypatch):
    """So that an image has the same bits wherever it stands, because kernels add in an order of their own per shape."""
    forward, sizes = Waves.forward, []
    monkeypatch.setattr(Waves, "forward", lambda self, x, *more: sizes.append(len(x)) or forward(self, x, *more))
    monkeypatch.setattr(type(MODEL), "default_batch_size", 2)
    assert len(sdedit(Editor(MODEL, seed=5, labels=1), IMAGES, 0.5, steps=4)) == 5
    assert set(sizes) == {2}

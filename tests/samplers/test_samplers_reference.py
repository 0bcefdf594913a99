"""Every sampler with every option of the Denoiser, pair by pair, against the plain one of tests/plain_sampler.py."""

import itertools
import math
import random
from dataclasses import dataclass

import plain_sampler as plain
import pytest
import torch
from torch import Tensor

from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas, rescale_zero_terminal_snr
from ddpm.samplers import SAMPLERS, Denoiser

T, CLASSES = 61, 3
SHAPE = (2, 3, 5)
LABELS = [2, 0, 1, 1, 0]
FACTORS = {
    "sampler": [*SAMPLERS, "ddim eta=0.4", "ddim eta=1.0"],
    "prediction": ["epsilon", "x_0", "v"],
    "variance": ["fixed_small", "fixed_large", "learned_range"],
    "guidance": [1.0, 0.0, 2.5, -0.7],
    "rescale": [0.0, 0.6, 1.0],
    "clip": ["static", "dynamic", None],
    "spacing": ["trailing", "leading", "uniform", "quadratic", "log_snr"],
    "labelled": [True, False],
    "schedule": ["linear", "cosine", "zero"],
    "steps": [1, 2, 7],
    "batch_size": [1, 2, 5, None],
}


def allowed(choice: dict) -> bool:
    if choice["guidance"] != 1 and not choice["labelled"]:
        return False
    return not (choice["schedule"] == "zero" and choice["prediction"] == "epsilon")


def pairwise_choices() -> list[dict]:
    """Choices in which every allowed pair of values of two factors occurs: greedy, out of random candidates."""
    draw = random.Random(0)

    def candidates(fixed: dict):
        for _ in range(400):
            choice = {name: draw.choice(values) for name, values in FACTORS.items()} | fixed
            if allowed(choice):
                yield choice

    def pairs(choice: dict) -> set:
        return set(itertools.combinations(choice.items(), 2))

    missing = {
        pair
        for (a, xs), (b, ys) in itertools.combinations(FACTORS.items(), 2)
        for x in xs
        for y in ys
        if next(candidates(dict(pair := ((a, x), (b, y)))), None)
    }
    choices = []
    while missing:
        fixed = dict(min(missing, key=str))
        best = max(itertools.islice(candidates(fixed), 40), key=lambda choice: len(pairs(choice) & missing))
        missing -= pairs(best)
        choices.append(best)
    return choices


CHOICES = pairwise_choices()


@dataclass
class Case:
    sampler: str
    prediction: str
    variance: str
    guidance: float
    rescale: float
    clip: str | None
    spacing: str
    labelled: bool
    schedule: str
    steps: int
    batch_size: int | None
    null_label: int = CLASSES
    interval: tuple[float, float] = (0.0, math.inf)
    eta: float = 0.0

    def __post_init__(self):
        self.sampler, _, option = self.sampler.partition(" ")
        self.given = dict([option.split("=")] if option else [])
        if "eta" in self.given:
            self.given["eta"] = float(self.given["eta"])
        vars(self).update(self.given)

    def network(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Not linear in x_t, t or the class, and different for every pixel."""
        channels = 4 if self.variance == "learned_range" else 2
        weight = torch.randn(channels, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        ramp = torch.linspace(-0.7, 1.1, channels * 15, dtype=torch.float64).reshape(1, channels, 3, 5)
        h = torch.einsum("oc,nchw->nohw", weight, x_t) + torch.cos(t / 9)[:, None, None, None] + ramp
        if labels is not None:
            h = h + (1.0 + labels.double() ** 2)[:, None, None, None] * ramp
        return 1.3 * torch.sin(h) + 0.2 * h


@pytest.mark.parametrize("index", range(len(CHOICES)))
def test_sampler_equals_the_plain_one(index):
    case = Case(**CHOICES[index])
    zero = case.schedule == "zero"
    name = "linear" if zero else case.schedule
    kept = plain.alphas_cumprod(name, T, 1e-3, 0.3, zero)
    betas = make_betas(name, T, 1e-3, 0.3)
    schedule = NoiseSchedule(rescale_zero_terminal_snr(betas) if zero else betas)
    timesteps = SAMPLERS[case.sampler].timesteps(schedule, case.steps, case.spacing)
    assert timesteps == pytest.approx(plain.grid(kept, case.steps, case.spacing), abs=1e-7)

    generator = torch.Generator().manual_seed(index)
    x_T, *noises = torch.randn(case.steps + 1, 5, *SHAPE, generator=generator, dtype=torch.float64).unbind()
    labels = torch.tensor(LABELS) if case.labelled else None
    denoiser = Denoiser(
        case.network,
        GaussianDiffusion(schedule, case.prediction, case.variance),
        labels=labels,
        null_label=CLASSES if case.labelled else None,
        guidance=case.guidance,
        guidance_rescale=case.rescale,
        clip=case.clip,
        batch_size=case.batch_size,
    )
    steps, draws = [], iter(noises)
    drawn = SAMPLERS[case.sampler](
        denoiser, x_T, timesteps, noise=lambda: next(draws), callback=steps.append, **case.given
    )
    assert [(step.index, step.steps) for step in steps] == [(i, case.steps) for i in range(case.steps)]
    assert [(step.t, step.t_prev) for step in steps] == list(itertools.pairwise(timesteps))
    for n in range(5):
        label = LABELS[n] if case.labelled else None
        rows = plain.sample(case, kept, x_T[n], timesteps, [noise[n] for noise in noises], label)
        for step, (x_t, x_0, x_prev) in zip(steps, rows, strict=True):
            scale = 1 + float(x_0.abs().max() + x_prev.abs().max())
            for mine, theirs in ((step.x_t, x_t), (step.x_0, x_0), (step.x_prev, x_prev)):
                assert (mine[n] - theirs).abs().max() < 1e-6 * scale, CHOICES[index]
        assert torch.equal(drawn[n], steps[-1].x_prev[n])


def test_every_pair_occurs():
    assert len(CHOICES) < 80
    for name, values in FACTORS.items():
        assert {choice[name] for choice in CHOICES} == set(values)

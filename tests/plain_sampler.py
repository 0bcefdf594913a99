"""Every sampler once more, plainly: float64, one image at a time, each formula as its paper prints it."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from ddpm.common.randomness import image_generator
from ddpm.diffusion import GaussianDiffusion, NoiseSchedule
from ddpm.model import Model

FIRST_CLEAR = 200  # Heun takes Euler steps from where the noise is more than 200 times the signal


def alphas_cumprod(name: str, T: int, start: float = 1e-4, end: float = 0.02, zero_terminal_snr: bool = False):
    """ᾱ_0 … ᾱ_{T-1} (Ho et al. 2020; Nichol & Dhariwal 2021, eq. 17; Lin et al. 2024, algorithm 1)."""
    if name == "cosine":
        f = [math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(T + 1)]
        betas = [min(1 - f[t + 1] / f[t], 0.999) for t in range(T)]
    else:
        betas = [start + (end - start) * t / (T - 1) for t in range(T)]
    kept = np.cumprod([1 - beta for beta in betas])
    if zero_terminal_snr:
        root = np.sqrt(kept)
        kept = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return kept


def signal_noise(kept, t: float) -> tuple[float, float]:
    """(√ᾱ_t, √(1-ᾱ_t)); between two timesteps log ᾱ is linear, and with no signal left it is log 10^-20 or less."""
    if t == -1:
        return 1.0, 0.0
    low = math.floor(t)
    if t == low:
        return math.sqrt(kept[low]), math.sqrt(1 - kept[low])
    logs = [0.0, *(math.log(k) if k > 0 else -math.inf for k in kept)]
    if logs[-1] == -math.inf:
        logs[-1] = min(math.log(1e-20), logs[-2] - 1)
    kept_t = math.exp(logs[low + 1] + (t - low) * (logs[low + 2] - logs[low + 1]))
    return math.sqrt(kept_t), math.sqrt(1 - kept_t)


def lambda_of(kept, t: float) -> float:
    """λ_t = log(√ᾱ_t / √(1-ᾱ_t))."""
    signal, noise = signal_noise(kept, t)
    return math.inf if noise == 0 else -math.inf if signal == 0 else math.log(signal / noise)


def grid(kept, steps: int, spacing: str) -> list[float]:
    """The timesteps of a run, and -1."""
    T = len(kept)
    if spacing == "trailing":
        return [float(round(T - i * T / steps) - 1) for i in range(steps)] + [-1.0]
    if spacing == "leading":
        return [float(i * (T // steps)) for i in range(steps - 1, -1, -1)] + [-1.0]
    if spacing == "uniform":
        return [float(round((T - 1) * (1 - i / max(steps - 1, 1)))) for i in range(steps)] + [-1.0]
    if spacing == "quadratic":
        taken: list[int] = []
        for i in range(steps):
            t = math.floor((math.sqrt(0.8 * T) * i / max(steps - 1, 1)) ** 2)
            taken.append(t if not taken or t > taken[-1] else taken[-1] + 1)
        return [float(t) for t in taken[::-1]] + [-1.0]
    first, last = max(lambda_of(kept, T - 1), -math.log(80)), lambda_of(kept, 0)
    middle = [first + (last - first) * i / (steps - 1) for i in range(1, steps - 1)]
    return [*[T - 1.0, *(_t_of(kept, value) for value in middle), 0.0][:steps], -1.0]


def _t_of(kept, value: float) -> float:
    low, high = 0.0, len(kept) - 1.0
    for _ in range(100):
        t = (low + high) / 2
        low, high = (t, high) if lambda_of(kept, t) > value else (low, t)
    return low


def predict(case, kept, x, t: float, label):
    """x̂_0, ε̂ and the variance's fraction of one image (C, H, W): guidance, rescaling, the prediction, the limit."""
    signal, noise = signal_noise(kept, t)
    channels = len(x)

    def network(given):
        return case.network(x[None], torch.tensor([t], dtype=torch.float64), given)[0]

    raw = network(None if label is None else torch.tensor([label]))
    lowest, highest = case.interval
    if case.guidance != 1 and noise >= lowest * signal and not noise >= highest * signal:  # no signal: above all
        null = network(torch.tensor([case.null_label]))[:channels]
        mean = raw[:channels]
        guided = null + case.guidance * (mean - null)
        if case.guidance == 0:
            raw = network(torch.tensor([case.null_label]))
        else:
            rescaled = guided * (mean.std() / guided.std())
            guided = case.rescale * rescaled + (1 - case.rescale) * guided
            raw = torch.cat([guided, raw[channels:]])
    output, fraction = raw[:channels], (raw[channels:] + 1) / 2
    if case.prediction == "epsilon":
        x_0 = (x - noise * output) / signal
    else:
        x_0 = output if case.prediction == "x_0" else signal * x - noise * output
    if case.clip == "static":
        x_0 = x_0.clamp(-1, 1)
    if case.clip == "dynamic":
        bound = max(1.0, float(np.quantile(x_0.abs().numpy(), 0.995)))
        x_0 = x_0.clamp(-bound, bound) / bound
    return x_0, (x - signal * x_0) / noise, fraction


def sample(case, kept, x, timesteps, noises, label=None) -> list[tuple]:
    """Take one image x (C, H, W) down the timesteps; return (x_t, x̂_0, x_prev) of every step. `noises`: one a step."""
    rows: list[tuple] = []
    past: list[tuple] = []  # (λ, x̂_0) of the steps before
    before = None  # UniPC: what the corrector needs of the last step
    for i, (t, s) in enumerate(pairwise(timesteps)):
        (a, b), (a_s, b_s) = signal_noise(kept, t), signal_noise(kept, s)
        lam, lam_s = lambda_of(kept, t), lambda_of(kept, s)
        x_0, eps, fraction = predict(case, kept, x, t, label)
        h = lam_s - lam
        z = noises[i] if i < len(noises) else None
        if case.sampler == "unipc":
            if before is not None:
                x = before(x_0)
            x_s, before = _unipc(x, x_0, past, lam, lam_s, b_s / b, a_s)
        elif case.sampler == "ancestral":
            beta = 1 - a**2 / a_s**2
            small = beta * b_s**2 / b**2  # eq. 7
            x_s = (a_s * beta / b**2) * x_0 + (math.sqrt(1 - beta) * b_s**2 / b**2) * x
            if s > -1:
                if case.variance == "learned_range":
                    x_s = x_s + (0.5 * (fraction * math.log(beta) + (1 - fraction) * math.log(small))).exp() * z
                else:
                    x_s = x_s + math.sqrt(beta if case.variance == "fixed_large" else small) * z
        elif case.sampler == "ddim":
            spread = case.eta * math.sqrt(b_s**2 / b**2) * math.sqrt(1 - a**2 / a_s**2)  # eq. 16
            x_s = a_s * x_0 + math.sqrt(b_s**2 - spread**2) * eps + (spread * z if spread > 0 else 0)
        elif case.sampler == "heun":
            x_s = a_s * (x / a + (b_s / a_s - b / a) * eps) if a > 0 else a_s * x_0 + b_s * eps
            if b_s > 0 and b <= FIRST_CLEAR * a:
                eps_s = predict(case, kept, x_s, s, label)[1]
                x_s = a_s * (x / a + (b_s / a_s - b / a) * (eps + eps_s) / 2)
        else:
            D = x_0
            if past and math.isfinite(h) and math.isfinite(past[-1][0]):
                r = (lam - past[-1][0]) / h
                D = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * past[-1][1]
            if case.sampler == "dpm++":
                x_s = b_s / b * x - a_s * math.expm1(-h) * D
            else:
                x_s = b_s / b * math.exp(-h) * x - a_s * math.expm1(-2 * h) * D
                x_s = x_s + (b_s * math.sqrt(-math.expm1(-2 * h)) * z if s > -1 else 0)
        past.append((lam, x_0))
        rows.append((x, x_0, x_s))
        x = x_s
    return rows


def _unipc(x, x_0, past, lam: float, lam_s: float, ratio: float, a_s: float):
    """UniP-2 and UniC-2 of Zhao et al. 2023 for a predicted x_0: the weights solve R(h) ρ = b(h)."""
    h = lam_s - lam
    first = ratio * x - a_s * math.expm1(-h) * x_0
    if not math.isfinite(h):
        return first, lambda _: first
    B = math.expm1(-h)
    earlier = [(value, at) for value, at in past[-1:] if math.isfinite(value)]
    slopes, r = [], []
    for value, at in earlier:
        r.append((value - lam) / h)
        slopes.append((at - x_0) / r[-1])
    predicted = first - a_s * B * sum((0.5 * slope for slope in slopes), torch.zeros_like(x))

    def corrected(x_0_next):
        order, powers = len(slopes) + 1, [*r, 1.0]
        R = np.array([[power**n for power in powers] for n in range(order)])
        phi, b = math.expm1(-h) / -h - 1, []
        for n in range(1, order + 1):  # b_n = n! h φ_{n+1}(-h) / B(h)
            b.append(phi * math.factorial(n) / B)
            phi = phi / -h - 1 / math.factorial(n + 1)
        rho = np.linalg.solve(R, b) if order > 1 else [0.5]
        total = sum((float(w) * d for w, d in zip(rho, [*slopes, x_0_next - x_0], strict=True)), torch.zeros_like(x))
        return first - a_s * B * total

    return predicted, corrected


# --- a model to sample from and to edit with

CLASSES, SHAPE = 3, (2, 5, 6)


class Waves(nn.Module):
    """Not linear in x_t, t or the class, and different for every pixel; bounded, so that images stay near [-1, 1]."""

    def __init__(self):
        super().__init__()
        self.ramp = nn.Parameter(torch.linspace(-0.7, 1.1, math.prod(SHAPE)).reshape(1, *SHAPE))

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        h = x_t + 0.3 * x_t.flip(1) + torch.cos(t / 9).to(x_t.dtype)[:, None, None, None]
        return torch.sin(h + (0.5 + labels.to(x_t.dtype) ** 2)[:, None, None, None] * self.ramp)


@dataclass
class Plain:
    """What `sample` needs to know of a run."""

    network: nn.Module
    sampler: str = "ddim"
    prediction: str = "epsilon"
    variance: str = "fixed_large"
    guidance: float = 1.0
    interval: tuple[float, float] = (0.0, math.inf)
    rescale: float = 0.0
    clip: str | None = None
    eta: float = 0.0
    null_label: int = CLASSES


def wave_model(kept) -> Model:
    """A model of `Waves` that predicts ε."""
    betas = 1 - kept / np.array([1.0, *kept[:-1]])
    process = GaussianDiffusion(NoiseSchedule(torch.from_numpy(betas)), "epsilon", "fixed_large")
    return Model(Waves(), process, image_shape=SHAPE, class_names=["a", "b", "c"], null_label=CLASSES)


def draws(seed: int, index: int, number: int) -> list[Tensor]:
    """The noise of an image, in the order in which it is drawn."""
    generator = image_generator(seed, index)
    return [torch.randn(SHAPE, generator=generator).double() for _ in range(number)]

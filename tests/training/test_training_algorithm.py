"""Steps of training against a plain reference: Ho et al. 2020, algorithm 1, written out in float64.

The network is a small one that computes in float32 whatever it is given, so that a reduced precision acts only where
the step rounds: on x_t. Everything else must agree to float32 in every precision.
"""

import contextlib
import copy
import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ddpm.diffusion.config import DiffusionConfig
from ddpm.networks.config import NetworkConfig
from ddpm.networks.unet import UNet
from ddpm.training import step
from ddpm.training.batches import Batch
from ddpm.training.config import TrainingConfig
from ddpm.training.optimizer import EMA, Optimizer, learning_rate
from ddpm.training.step import COMPILER, Learner, agree_on_micro_batch, build_learner, train_step
from ddpm.training.tracking import Progress, Timer, log_record

T = 900  # more than bf16 can count to, 256
BETAS = torch.linspace(0.0004, 0.012, T, dtype=torch.float64)
RATES = [1e-3, 4e-3, 2e-3, 0.5e-3]
PRECISIONS = [torch.float32, torch.bfloat16, torch.float16]
LOG_2 = math.log(2)
LEFT = contextlib.nullcontext()


class Plain(nn.Module):
    """Two channels in; each parameter sees the class, t and the dropout key in another way. Counts its calls."""

    def __init__(self, outputs: int, classes: int | None):
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.mix = nn.Parameter(torch.randn(outputs, 2, generator=draw))
        self.bias = nn.Parameter(torch.randn(outputs, 5, 3, generator=draw))
        self.slope = nn.Parameter(torch.randn(outputs, generator=draw) / 500)
        self.rows = None if classes is None else nn.Parameter(torch.randn(classes, outputs, generator=draw))
        self.register_buffer("calls", torch.zeros(()))
        self.seen: list[tuple[torch.dtype, torch.dtype]] = []

    def forward(self, x_t, t, labels, dropout_keys):
        self.calls += 1
        self.seen.append((x_t.dtype, t.dtype))
        x_t = x_t.to(self.mix.dtype)
        y = torch.einsum("oc,nchw->nohw", self.mix, x_t) + self.bias + (self.slope * t[:, None])[..., None, None]
        if self.rows is not None:
            y = y + self.rows[labels][..., None, None]
        return y * (1 + (dropout_keys % 7) / 10)[:, None, None, None]


def make_batch(number: int, size: int, classes: int | None, weighted: bool) -> Batch:
    """Random images at the levels k/127.5 - 1, of which some have t = 0; nothing about them is symmetric."""
    draw = torch.Generator().manual_seed(100 + number)
    x_0 = torch.randint(0, 256, (size, 2, 5, 3), generator=draw) / 127.5 - 1
    t = torch.randint(0, T, (size,), generator=draw)
    t[number % size] = 0
    weight = torch.rand(size, generator=draw) * 2 + 0.25 if weighted else torch.ones(size)
    labels = None if classes is None else torch.randint(0, classes, (size,), generator=draw)
    keys = torch.randint(2**62, (size,), generator=draw)
    return Batch(x_0, labels, t, weight, torch.randn(x_0.shape, generator=draw), keys)


def reference_losses(
    network: nn.Module, batch: Batch, prediction: str, loss: str, rounded: torch.dtype
) -> torch.Tensor:
    """The loss of each image, float64: eq. 14 for the prediction, and L_hybrid of Nichol & Dhariwal (eq. 16)."""
    alphas_cumprod = (1 - BETAS).cumprod(0)
    x_0, noise, t = batch.x_0.double(), batch.noise.double(), batch.t

    def at(column: torch.Tensor) -> torch.Tensor:
        return column[t].view(-1, 1, 1, 1)

    alpha, sigma = at(alphas_cumprod.sqrt()), at((1 - alphas_cumprod).sqrt())
    x_t = alpha * x_0 + sigma * noise
    given = (alpha.float() * batch.x_0 + sigma.float() * batch.noise).to(rounded).double()  # what the network sees
    output = network(given, t.double(), batch.labels, batch.dropout_keys)
    mean, *rest = output.chunk(2, 1) if loss == "hybrid" else [output]
    target = {"epsilon": noise, "x_0": x_0, "v": alpha * noise - sigma * x_0}[prediction]
    error = (mean - target).abs() if loss == "l1" else (mean - target).square()
    simple = error.mean((1, 2, 3))
    if loss != "hybrid":
        return simple

    previous = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
    smallest = BETAS * (1 - previous) / (1 - alphas_cumprod)  # β̃, eq. 7
    smallest[0] = smallest[1]
    fraction = (rest[0] + 1) / 2
    log_variance = fraction * at(BETAS.log()) + (1 - fraction) * at(smallest.log())
    mean = mean.detach()  # L_vlb trains the variance alone
    predicted = {
        "epsilon": (x_t - sigma * mean) / alpha,
        "x_0": mean,
        "v": alpha * x_t - sigma * mean,
    }[prediction]
    weight = at(previous.sqrt() * BETAS / (1 - alphas_cumprod))  # of x_0 in eq. 7
    kl = 0.5 * (
        log_variance
        - at(smallest.log())
        + (at(smallest) + (weight * (x_0 - predicted)).square()) / log_variance.exp()
        - 1
    )

    def cdf(x):  # the approximation of the published code
        return torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))

    std = (log_variance / 2).exp()
    upper = torch.where(x_0 > 0.999, 1.0, cdf((x_0 + 1 / 255 - predicted) / std))
    lower = torch.where(x_0 < -0.999, 0.0, cdf((x_0 - 1 / 255 - predicted) / std))
    nll = -(upper - lower).clamp(min=1e-12).log()
    bound = torch.where(t.view(-1, 1, 1, 1) == 0, nll, kl).mean((1, 2, 3)) / LOG_2
    return simple + 0.001 * T * bound


class Reference:
    """Adam of Kingma & Ba, the clipped gradient of the whole batch at once, and the average, in float64."""

    def __init__(self, network: Plain, clip: float | None, decay: float, warmup: bool):
        self.network = copy.deepcopy(network).double()
        self.parameters = dict(self.network.named_parameters())
        self.clip, self.decay, self.warmup = clip, decay, warmup
        self.first = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.second = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.steps = 0

    def step(self, losses: torch.Tensor, weight: torch.Tensor, rate: float) -> tuple[float, float]:
        loss = (losses * weight).mean()
        gradients = torch.autograd.grad(loss, list(self.parameters.values()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        if self.clip is not None and norm > self.clip:
            gradients = [g * self.clip / norm for g in gradients]
        n, self.steps = self.steps, self.steps + 1
        decay = min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay
        with torch.no_grad():
            for (name, p), g in zip(self.parameters.items(), gradients, strict=True):
                self.first[name] = 0.9 * self.first[name] + 0.1 * g
                self.second[name] = 0.999 * self.second[name] + 0.001 * g**2
                mean, square = self.first[name] / (1 - 0.9**self.steps), self.second[name] / (1 - 0.999**self.steps)
                p -= rate * mean / (square.sqrt() + 1e-8)
                self.average[name] = decay * self.average[name] + (1 - decay) * p
        return loss.item(), norm


CASES = {  # prediction, loss, classes, weighted, batch, micro-batch, clip, EMA's decay and warm-up
    "plain": ("epsilon", "simple", None, False, 6, 6, 1.0, 0.97, False),
    "accumulated": ("epsilon", "simple", 3, True, 7, 3, 1.0, 0.97, True),
    "one_by_one": ("v", "simple", 3, True, 5, 1, 2.5, 0.97, False),
    "two_uneven": ("x_0", "simple", 3, True, 7, 4, None, 0.13, True),
    "small_gradients": ("epsilon", "simple", 3, True, 7, 7, 1e4, 0.97, True),
    "hybrid": ("epsilon", "hybrid", 3, True, 7, 3, 1.0, 0.97, True),
    "hybrid_of_v": ("v", "hybrid", None, True, 5, 2, None, 0.97, True),
    "absolute_error": ("epsilon", "l1", None, True, 5, 2, 0.3, 0.97, False),
}


@pytest.mark.parametrize("dtype", PRECISIONS, ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("case", CASES)
def test_steps_are_those_of_the_reference(case, dtype):
    """Loss, gradient norm, weights, moments, average, buffers, and the numbers of a log line, over four steps."""
    prediction, loss, classes, weighted, size, micro_batch, clip, decay, warmup = CASES[case]
    hybrid = loss == "hybrid"
    network = Plain(4 if hybrid else 2, classes)
    variance = "learned_range" if hybrid else "fixed_small"
    config = DiffusionConfig(betas=BETAS.tolist(), prediction=prediction, variance=variance, loss=loss)
    optimizer, ema = Optimizer(network, clip, dtype == torch.float16), EMA(network, decay, warmup)
    learner = Learner(network, network, config.build(), config.build_loss(), optimizer, ema, dtype, size, micro_batch)
    reference, progress, records = Reference(network, clip, decay, warmup), Progress(), []
    for number, rate in enumerate(RATES):
        batch = make_batch(number, size, classes, weighted)
        each = reference_losses(reference.network, batch, prediction, loss, dtype)
        expected, norm = reference.step(each, batch.weight.double(), rate)
        result = train_step(learner, batch, rate)
        torch.testing.assert_close(result.losses.double(), each.detach(), rtol=3e-5, atol=1e-7)
        assert result.numbers.tolist() == pytest.approx([expected, norm, 0], rel=3e-5)
        assert all(p.grad is None for p in network.parameters())
        progress.step, progress.images = number + 1, size * (number + 1)
        progress.count(*result.numbers.tolist()[:2])
        records.append((expected, norm))
    assert set(network.seen) == {(dtype, torch.float32)}
    assert len(network.seen) == 4 * -(-size // micro_batch)

    moments = optimizer.state_dict()
    for name, parameter in network.named_parameters():
        moved = reference.parameters[name].detach()
        torch.testing.assert_close(parameter.detach().double(), moved, rtol=1e-5, atol=2e-7)
        for key, value in (("exp_avg", reference.first), ("exp_avg_sq", reference.second)):
            scale = float(value[name].abs().max())
            torch.testing.assert_close(moments[f"{name}.{key}"].double(), value[name], rtol=2e-4, atol=2e-5 * scale)
        assert moments[f"{name}.step"] == 4
        torch.testing.assert_close(ema.state_dict()[name].double(), reference.average[name], rtol=1e-5, atol=2e-7)
    assert ema.state_dict()["ema_updates"] == 4
    assert ema.state_dict()["calls"] == network.calls

    training = TrainingConfig(learning_rate=0.8, warmup=20, steps=60)
    progress.seconds = 12.345
    record = log_record(progress, learning_rate(training, 3), learner, skipped=3)
    means = [sum(column) / 4 for column in zip(*records, strict=True)]
    weights = torch.cat([p.detach().flatten() for p in reference.parameters.values()])
    trailing = torch.cat([p.flatten() for p in reference.average.values()]) - weights
    expected = {
        "step": 4,
        "images": 4 * size,
        "loss": means[0],
        "gradient_norm": means[1],
        "learning_rate": 0.8 * 4 / 20,  # of the fourth step
        "weight_norm": float(weights.norm()),
        "ema_drift": float(trailing.norm() / weights.norm()),
        "skipped": 3,
        "seconds": 12.35,
    }
    if dtype == torch.float16:
        expected["loss_scale"] = 65536
    assert record == pytest.approx(expected, rel=1e-3)
    assert math.isnan(log_record(progress, 0.1, learner, 0)["loss"])  # the sums began again


def test_build_learner_passes_the_configuration_and_the_plan_on(monkeypatch):
    """Each field where it belongs; a network that is to be compiled is, its average is not."""
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, options: compiled.append((self, options)))
    config = DiffusionConfig(betas=BETAS.tolist(), prediction="v", variance="fixed_large", weighting="min_snr")
    training = TrainingConfig(batch_size=11, grad_clip=0.7, ema_decay=0.31, ema_warmup=False)
    for dtype, scales in ((torch.bfloat16, False), (torch.float16, True)):
        network = Plain(2, 3)
        plan = SimpleNamespace(
            device=torch.device("cpu"), dtype=dtype, scales_loss=scales, micro_batch=5, compile=scales
        )
        learner = build_learner(network, config, training, plan)
        assert learner.network is learner.parallel is network
        assert (learner.batch_size, learner.micro_batch, learner.dtype) == (11, 5, dtype)
        assert (learner.optimizer.clip, learner.optimizer.scales_loss) == (0.7, scales)
        assert (learner.ema.decay, learner.ema.warmup) == (0.31, False)
        assert (learner.diffusion.prediction, learner.diffusion.variance) == ("v", "fixed_large")
        assert torch.equal(learner.diffusion.schedule.betas, BETAS)
        assert learner.objective.diffusion.prediction == "v"
        assert learner.objective._weight is not None
    assert compiled == [(network, COMPILER)]


@pytest.mark.parametrize(
    ("name", "dtype", "products"),
    [
        ("adam", torch.bfloat16, None),
        ("muon", torch.float32, torch.float32),
        ("muon", torch.bfloat16, torch.bfloat16),
        ("muon", torch.float16, torch.float32),
    ],
)
def test_build_learner_gives_muon_its_number_format(name, dtype, products):
    """fp16 is too narrow for its products."""
    plan = SimpleNamespace(
        device=torch.device("cpu"), dtype=dtype, scales_loss=dtype == torch.float16, micro_batch=2, compile=False
    )
    learner = build_learner(Plain(2, 3), DiffusionConfig(), TrainingConfig(optimizer=name), plan)
    found = learner.optimizer.muon
    assert (None if found is None else found.dtype) == products


@pytest.mark.parametrize(("steps", "rate"), [(300, 3e-3), (1000, 1e-3)])
def test_at_the_full_rate_a_run_forgets_the_weights_it_began_with_to_exp_minus_6(steps, rate):
    """However many steps it has, and whatever the rate: without a gradient, only the decay is left."""
    network = UNet(NetworkConfig(channels=4, channel_mult=[1], blocks=1, attention=[], groups=2), (4, 4), 1, 1)
    plan = SimpleNamespace(
        device=torch.device("cpu"), dtype=torch.float32, scales_loss=False, micro_batch=2, compile=False
    )
    training = TrainingConfig(optimizer="muon", steps=steps, learning_rate=rate)
    muon = build_learner(network, DiffusionConfig(), training, plan).optimizer.muon
    assert muon is not None
    before = {name: p.detach().clone() for name, p in muon.parameters.items()}
    for p in muon.parameters.values():
        p.grad = torch.zeros_like(p)
    for _ in range(steps):
        muon.step(rate, torch.tensor(True))
    for name, p in muon.parameters.items():
        torch.testing.assert_close(p.detach(), before[name] * (1 - 6 / steps) ** steps, rtol=1e-3, atol=0)


@pytest.mark.parametrize("shares", [[7], [3, 4], [1, 4, 2]])
def test_mean_over_processes_of_the_gradients_of_their_shares_is_that_of_the_batch(monkeypatch, shares):
    """Shares differ in size and are accumulated in micro-batches; the loss and the wishes to stop are added up."""
    batch, rest = make_batch(0, 7, 3, True), 11.0
    reference = Reference(Plain(2, 3), None, 0.97, True)
    each = reference_losses(reference.network, batch, "v", "simple", torch.float32)
    whole = torch.autograd.grad((each * batch.weight).mean(), list(reference.parameters.values()))
    gradients = []

    class Watched(Optimizer):
        def step(self, learning_rate, loss):
            gradients.append([p.grad.clone() for p in self.parameters])
            return torch.tensor(0.5)

    monkeypatch.setattr(step, "world_size", lambda: len(shares))
    monkeypatch.setattr(step, "all_sum", lambda tensor: tensor + rest)
    tensors = {name: tensor.split(shares) for name, tensor in batch.tensors().items()}
    for index, share in enumerate(shares):
        network = Plain(2, 3)
        config = DiffusionConfig(betas=BETAS.tolist(), prediction="v")
        parts = (network, network, config.build(), config.build_loss(), Watched(network, None), EMA(network))
        learner = Learner(*parts, torch.float32, 7, 2)
        mine = Batch.of({name: chunk[index] for name, chunk in tensors.items()})
        exchanged = []
        monkeypatch.setattr(step, "gradients_exchanged", lambda _, wanted, to=exchanged: to.append(wanted) or LEFT)
        result = train_step(learner, mine, 1e-3, stop=index == 1)
        assert exchanged == [False] * (-(-share // 2) - 1) + [True]
        first = sum(shares[:index])
        loss = float((each.detach() * batch.weight)[first : first + share].sum()) / 7
        assert result.numbers.tolist() == pytest.approx([loss + rest, 0.5, (index == 1) + rest], rel=1e-5)
    for expected, *of_processes in zip(whole, *gradients, strict=True):
        torch.testing.assert_close(torch.stack(of_processes).mean(0).double(), expected, rtol=1e-4, atol=1e-6)


def test_micro_batches_are_halved_until_they_fit(monkeypatch, capsys):
    """Rounded up, and refused after a single image; the trial leaves no gradient behind."""
    network = Plain(2, None)
    config = DiffusionConfig(betas=BETAS.tolist())
    tried = []

    class Limited(nn.Module):
        def forward(self, x_t, *rest):
            tried.append(len(x_t))
            if len(x_t) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return network(x_t, *rest)

    learner = Learner(
        network,
        Limited(),
        config.build(),
        config.build_loss(),
        Optimizer(network, 1.0),
        EMA(network),
        torch.float32,
        9,
        9,
    )
    agree_on_micro_batch(learner, make_batch(0, 9, None, False))
    assert learner.micro_batch == 2
    assert tried == [9, 5, 3, 2]
    assert all(p.grad is None for p in network.parameters())
    assert "the micro-batch is now 5; the batch is unchanged" in capsys.readouterr().out
    monkeypatch.setattr(step, "gather", lambda mine: [3, *mine, 1, 2])  # of all processes
    agree_on_micro_batch(learner, make_batch(0, 9, None, False))
    assert learner.micro_batch == 1


@pytest.mark.parametrize(
    ("size", "parts"), [(1, [1] * 7), (2, [2, 2, 2, 1]), (3, [3, 2, 2]), (4, [4, 3]), (7, [7]), (9, [7])]
)
def test_batch_split_gives_parts_of_nearly_equal_size_in_order(size, parts):
    batch = make_batch(1, 7, 3, True)
    found = list(batch.split(size))
    assert [len(part) for part in found] == parts
    for field in dataclasses.fields(Batch):
        assert torch.equal(torch.cat([getattr(part, field.name) for part in found]), getattr(batch, field.name))
    assert all(part.labels is None for part in make_batch(1, 7, None, True).split(size))


def test_progress_means_are_over_the_counted_steps():
    progress = Progress()
    progress.count(3.0, 10.0)
    progress.count(5.0, 40.0)
    assert progress.means() == (4.0, 25.0)
    assert all(math.isnan(mean) for mean in progress.means())
    progress.count(1.5, 2.5)
    assert progress.means() == (1.5, 2.5)


def test_timer_counts_steps_and_seconds_of_laps_but_not_pauses(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = Progress(step=5, seconds=1000.0)
    timer = Timer(5)
    progress.step, now[0] = 9, 102.0
    assert timer.lap(progress) == (4, 2.0)
    progress.step, now[0] = 11, 107.0
    assert timer.lap(progress) == (2, 5.0)
    now[0] = 150.0
    timer.restart()
    progress.step, now[0] = 12, 153.0
    assert timer.lap(progress) == (1, 3.0)
    assert progress.seconds == 1010.0

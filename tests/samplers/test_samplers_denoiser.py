"""Denoiser: guidance, rescale, thresholding, and the padded compute shape."""

import dataclasses
import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddpm.common.errors import UserError
from ddpm.common.randomness import ImageNoise
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas
from ddpm.model import SamplingOptions
from ddpm.samplers import SAMPLERS, Denoiser, find_sampler, timestep_grid

SCHEDULE = NoiseSchedule(make_betas("linear", 50, 1e-3, 0.2))
NULL = 3


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class ConvNetwork(nn.Module):
    """A small class-conditional network with what a U-Net's forward is made of."""

    def __init__(self, channels: int = 3, out_channels: int = 3):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.first = nn.Conv2d(channels, 16, 3, padding=1)
            self.norm = nn.GroupNorm(4, 16)
            self.classes = nn.Embedding(NULL + 1, 16)
            self.last = nn.Conv2d(16, out_channels, 3, padding=1)
        self.batch_sizes: list[int] = []

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        self.batch_sizes.append(len(x_t))
        hidden = self.first(x_t) + torch.sin(t / 7)[:, None, None, None]
        if labels is not None:
            hidden = hidden + self.classes(labels)[:, :, None, None]
        return self.last(torch.nn.functional.silu(self.norm(hidden)))


@pytest.fixture
def network() -> ConvNetwork:
    return ConvNetwork().requires_grad_(False)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x_0"])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5, -1.0])
def test_guidance_moves_the_answer_along_class_minus_null(network, guidance, prediction):
    diffusion = GaussianDiffusion(SCHEDULE, prediction)
    x_t, labels = random(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])
    answer = Denoiser(network, diffusion, labels=labels, null_label=NULL, guidance=guidance, clip=None)(x_t, 20.0)
    time = torch.full((4,), 20.0)
    conditional, null = network(x_t, time, labels), network(x_t, time, torch.full_like(labels, NULL))
    expected = diffusion.predicted_x_0(null + guidance * (conditional - null), x_t, 20.0)
    torch.testing.assert_close(answer.x_0, expected, rtol=1e-4, atol=1e-4)


def test_guidance_acts_within_its_interval_of_noise_levels(network):
    """Outside of it the class alone decides, in one network evaluation; each image has its own t, or all have one."""
    diffusion = GaussianDiffusion(SCHEDULE)
    sigmas = [math.sqrt(1 / SCHEDULE.alpha_bar(t) - 1) for t in range(SCHEDULE.timesteps)]
    first, last = 11, 29
    x_t, labels, times = random(4, 3, 8, 8), torch.tensor([0, 1, 2, 1]), torch.tensor([10, 11, 28, 29])
    options = {"labels": labels, "null_label": NULL, "clip": None}
    plain, guided = (Denoiser(network, diffusion, guidance=w, **options) for w in (1.0, 3.0))
    interval = tuple(math.sqrt(sigmas[t - 1] * sigmas[t]) for t in (first, last))
    limited = Denoiser(network, diffusion, guidance=3.0, guidance_interval=interval, **options)
    expected = {t: (guided if first <= t < last else plain)(x_t, float(t)).x_0 for t in times.tolist()}
    for t, x_0 in expected.items():
        network.batch_sizes.clear()
        torch.testing.assert_close(limited(x_t, float(t)).x_0, x_0)
        assert network.batch_sizes == [8 if first <= t < last else 4]
    mixed = torch.stack([expected[t][i] for i, t in enumerate(times.tolist())])
    torch.testing.assert_close(limited(x_t, times).x_0, mixed, rtol=1e-4, atol=1e-4)
    by_threes = Denoiser(network, diffusion, guidance=3.0, guidance_interval=interval, batch_size=3, **options)
    torch.testing.assert_close(by_threes(x_t, times).x_0, mixed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("interval", [(3.0, 1.0), (-1.0, 1.0), (1.0, 1.0), (0.1, math.nan)])
def test_a_guidance_interval_that_is_none_is_refused(network, interval):
    with pytest.raises(UserError, match="guidance_interval is a lowest and a highest noise level"):
        Denoiser(network, GaussianDiffusion(SCHEDULE), guidance_interval=interval)


@pytest.mark.parametrize("rescale", [0.0, 0.4, 1.0])
def test_guidance_rescale_is_diffusers(network, rescale):
    module = pytest.importorskip("diffusers.guiders.guider_utils")
    x_t, labels, time = random(2, 3, 8, 8), torch.tensor([0, 2]), torch.full((2,), 30.0)
    conditional, null = network(x_t, time, labels), network(x_t, time, torch.full_like(labels, NULL))
    guided = module.rescale_noise_cfg(null + 4 * (conditional - null), conditional, guidance_rescale=rescale)
    denoiser = Denoiser(
        network,
        GaussianDiffusion(SCHEDULE),
        labels=labels,
        null_label=NULL,
        guidance=4.0,
        guidance_rescale=rescale,
        clip=None,
    )
    torch.testing.assert_close(denoiser(x_t, 30.0).epsilon, guided, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rescale", [0.0, 1.0])
def test_guidance_leaves_the_learned_variance_to_the_class(rescale):
    network = ConvNetwork(out_channels=6).requires_grad_(False)
    diffusion = GaussianDiffusion(SCHEDULE, "epsilon", "learned_range")
    x_t, labels = random(2, 3, 8, 8), torch.tensor([0, 1])
    guidance = {"null_label": NULL, "guidance": 3.0, "guidance_rescale": rescale}
    answer = Denoiser(network, diffusion, labels=labels, **guidance)(x_t, 9.0)
    raw = network(x_t, torch.full((2,), 9.0), labels)[:, 3:]
    torch.testing.assert_close(answer.variance_fraction, (raw + 1) / 2)


def test_guidance_without_classes_is_refused(network):
    with pytest.raises(UserError, match="class-conditional"):
        Denoiser(network, GaussianDiffusion(SCHEDULE), guidance=2.0)
    with pytest.raises(UserError, match="class-conditional"):
        Denoiser(network, GaussianDiffusion(SCHEDULE), labels=torch.tensor([0]), guidance=2.0)
    with pytest.raises(UserError, match="needs labels"):
        Denoiser(network, GaussianDiffusion(SCHEDULE), null_label=NULL, guidance=2.0)


def test_an_unknown_limit_is_refused(network):
    with pytest.raises(UserError, match="clip is static, dynamic or None"):
        Denoiser(network, GaussianDiffusion(SCHEDULE), clip="Static")


def test_guidance_that_is_no_number_is_refused(network):
    labels = torch.tensor([0])
    with pytest.raises(UserError, match="guidance must be a number"):
        Denoiser(network, GaussianDiffusion(SCHEDULE), labels=labels, null_label=NULL, guidance=float("nan"))


@pytest.mark.parametrize("rescale", [float("nan"), 15.0, -0.1])
def test_a_rescale_outside_0_to_1_is_refused(network, rescale):
    with pytest.raises(UserError, match="fraction from 0 to 1"):
        Denoiser(network, GaussianDiffusion(SCHEDULE), guidance_rescale=rescale)


@pytest.mark.parametrize("ratio_above", [False, True])
def test_dynamic_thresholding_is_diffusers(ratio_above):
    diffusers = pytest.importorskip("diffusers")
    x_0 = random(3, 3, 8, 8) * (2.0 if ratio_above else 0.2)
    reference = diffusers.DDPMScheduler(thresholding=True, sample_max_value=1e9)._threshold_sample(x_0)
    denoiser = Denoiser(lambda x, t, labels: x_0, GaussianDiffusion(SCHEDULE, "x_0"), clip="dynamic")
    torch.testing.assert_close(denoiser(random(3, 3, 8, 8), 20.0).x_0, reference)


@pytest.mark.parametrize("clip", ["static", "dynamic", None])
@pytest.mark.parametrize("t", [0.0, 12.5, 49.0])
def test_x_0_and_epsilon_belong_together_also_after_clipping(network, clip, t):
    x_t = random(2, 3, 8, 8)
    answer = Denoiser(network, GaussianDiffusion(SCHEDULE), clip=clip)(x_t, t)
    signal, sigma = SCHEDULE.alpha_sigma(t)
    torch.testing.assert_close(signal * answer.x_0 + sigma * answer.epsilon, x_t, rtol=1e-5, atol=1e-5)
    if clip:
        assert answer.x_0.abs().max() <= 1


def test_double_precision_stays_double(network):
    network.double()
    x_t, labels = random(2, 3, 8, 8).double(), torch.tensor([0, 1])
    guided = Denoiser(network, GaussianDiffusion(SCHEDULE), labels=labels, null_label=NULL, guidance=2.0, clip=None)
    assert guided(x_t, 1 / 3).x_0.dtype == torch.float64
    time = torch.full((2,), 1 / 3, dtype=torch.float64)
    c, n = network(x_t, time, labels), network(x_t, time, torch.full_like(labels, NULL))
    torch.testing.assert_close(guided(x_t, 1 / 3).epsilon, 2 * c - n, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_does_not_depend_on_how_many_are_drawn_with_it(network, name, guidance):
    """Equal to the bit, at one padded compute shape."""
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])

    def draw(indices: list[int]) -> Tensor:
        denoiser = Denoiser(
            network,
            GaussianDiffusion(SCHEDULE),
            labels=labels[indices],
            null_label=NULL,
            guidance=guidance,
            batch_size=4,
        )
        noise = ImageNoise.of_seed(5, indices, (3, 8, 8))
        return SAMPLERS[name](denoiser, noise(), timestep_grid(SCHEDULE, 9), noise=noise)

    seven = draw([0, 1, 2, 3, 4, 5, 6])
    assert set(network.batch_sizes) == {4 if guidance == 1 else 8}
    assert torch.equal(draw([0, 1, 2]), seven[:3])
    assert torch.equal(draw([5]), seven[5:6])
    assert torch.equal(draw([6, 2]), seven[[6, 2]])
    assert not torch.equal(seven[0], seven[3])


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("name", SAMPLERS)
def test_network_evaluations_and_steps_are_as_announced(network, name, steps):
    seen = []
    noise = ImageNoise.of_seed(0, [0], (3, 8, 8))
    SAMPLERS[name](
        Denoiser(network, GaussianDiffusion(SCHEDULE)),
        noise(),
        timestep_grid(SCHEDULE, steps),
        noise=noise,
        callback=seen.append,
    )
    assert len(network.batch_sizes) == SAMPLERS[name].evaluations(steps)
    assert [step.index for step in seen] == list(range(steps))
    assert all(step.steps == steps for step in seen)
    for before, after in itertools.pairwise(seen):
        assert after.t == before.t_prev


def test_unknown_names_and_options_are_refused(network):
    with pytest.raises(UserError, match=r"did you mean dpm\+\+"):
        find_sampler("dpm+")
    with pytest.raises(UserError, match="ancestral, ddim"):
        find_sampler("zzz")
    with pytest.raises(UserError, match="no option 'eta'"):
        SAMPLERS["unipc"].check(["eta"])
    with pytest.raises(UserError, match="no option 'noise'"):  # that is given by who draws
        SAMPLERS["ddim"].check(["eta", "noise"])
    x_T, noise = random(1, 3, 8, 8), ImageNoise.of_seed(0, [0], (3, 8, 8))
    with pytest.raises(UserError, match="no option 'eta'"):
        SAMPLERS["unipc"](Denoiser(network, GaussianDiffusion(SCHEDULE)), x_T, [5.0, -1.0], noise=noise, eta=1.0)


# --- half precision: x goes in it, t does not, and what is computed from the answer is in x_t's format


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, None])
@pytest.mark.parametrize(("integer_t", "t"), [(False, 999.0), (False, 3.0), (True, 999.0), (True, 12.5), (False, 12.5)])
def test_t_reaches_the_network_exactly(dtype, integer_t, t):
    """bfloat16 knows 996 and 1,000, but no 999; float16 no fraction beside 999."""
    schedule, seen = NoiseSchedule(make_betas("linear", 1000)), []

    def network(x_t, time, labels):
        seen.append((x_t, time, labels))
        return x_t

    labels, x_t = torch.tensor([2, 0]), random(2, 3, 4, 4)
    diffusion = GaussianDiffusion(schedule)
    Denoiser(network, diffusion, labels=labels, dtype=dtype, integer_t=integer_t, clip=None)(x_t, t)
    Denoiser(network, diffusion, labels=labels, null_label=NULL, guidance=2.0, dtype=dtype, integer_t=integer_t)(x_t, t)
    for (x, time, given), expected in zip(seen, ([2, 0], [2, 0, NULL, NULL]), strict=True):
        assert given.tolist() == expected
        assert time.tolist() == [t] * len(expected)
        assert time.dtype == (torch.int64 if integer_t and t == 999 else torch.float32)
        assert x.dtype == (dtype or torch.float32)
        assert torch.equal(x, torch.cat([x_t] * (len(expected) // 2)).to(x.dtype))


@pytest.mark.parametrize("given", [torch.int64, torch.int32])
@pytest.mark.parametrize("integer_t", [False, True])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_timestep_of_each_image_reaches_the_network_like_a_number(integer_t, given, batch_size):
    """A network is asked for t in one format, however the caller gives it."""
    seen = []
    denoiser = Denoiser(
        lambda x, t, labels: seen.append(t) or x,
        GaussianDiffusion(NoiseSchedule(make_betas("linear", 1000))),
        integer_t=integer_t,
        batch_size=batch_size,
    )
    denoiser(random(3, 3, 4, 4), torch.tensor([999, 3, 0]).to(given))
    denoiser(random(3, 3, 4, 4), 999)
    assert {t.dtype for t in seen} == {torch.int64 if integer_t else torch.float32}
    assert seen[0].tolist()[:2] == [999, 3]


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("guidance", [1.0, 0.0, 2.3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_ends_with_the_network(dtype, guidance, batch_size):
    """The network answers numbers that both formats hold; all that follows must be as exact as float32."""
    x_t, labels = random(3, 2, 4, 4), torch.tensor([0, 2, 1])
    ramp = torch.arange(64).reshape(4, 4, 4).double() / 16 - 1.75  # (2C, H, W), each in six bits

    def answer(labels):
        return ramp * torch.tensor([1.0, 1.5, -0.5, 0.25])[labels][:, None, None, None]

    def network(x, t, labels):
        return answer(labels).to(x.dtype)

    diffusion = GaussianDiffusion(SCHEDULE, "v", "learned_range")
    options = {"null_label": NULL, "guidance": guidance, "guidance_rescale": 0.3, "clip": None}
    found = Denoiser(network, diffusion, labels=labels, dtype=dtype, batch_size=batch_size, **options)(x_t, 17.25)
    conditional, null = answer(labels), answer(torch.tensor([NULL] * 3))
    v, variance = conditional[:, :2], (null if guidance == 0 else conditional)[:, 2:]
    if guidance != 1:
        v = null[:, :2] + guidance * (v - null[:, :2])
    if guidance == 2.3:
        std = conditional[:, :2].std((1, 2, 3), keepdim=True) / v.std((1, 2, 3), keepdim=True)
        v = 0.3 * v * std + 0.7 * v
    signal, sigma = SCHEDULE.alpha_sigma(17.25)
    torch.testing.assert_close(found.x_0.double(), signal * x_t.double() - sigma * v, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.epsilon.double(), signal * v + sigma * x_t.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.variance_fraction.double(), (variance + 1) / 2, rtol=1e-6, atol=1e-6)
    assert {tensor.dtype for tensor in vars(found).values()} == {torch.float32}


@pytest.mark.parametrize("batch_size", [None, 1, 2, 5])
@pytest.mark.parametrize("guidance", [1.0, 0.0, 2.3])
@pytest.mark.parametrize("integer_t", [False, True])
def test_each_image_may_have_its_own_timestep(batch_size, guidance, integer_t):
    network = ConvNetwork(out_channels=6).requires_grad_(False).double()
    diffusion, labels = GaussianDiffusion(SCHEDULE, "v", "learned_range"), torch.tensor([2, 0, 1, 1, 0])
    x_t, t = random(5, 3, 8, 8).double(), torch.tensor([0, 49, 7, 23, 8])
    options = {"null_label": NULL, "guidance": guidance, "guidance_rescale": 0.4, "integer_t": integer_t}
    found = Denoiser(network, diffusion, labels=labels, batch_size=batch_size, **options)(x_t, t)
    for i in range(5):
        one = Denoiser(network, diffusion, labels=labels[i : i + 1], **options)(x_t[i : i + 1], float(t[i]))
        for name, values in vars(one).items():
            torch.testing.assert_close(getattr(found, name)[i : i + 1], values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_last_batch_is_padded_to_the_smallest_that_will_do(network, guidance):
    asked = []

    def smallest(number: int, rows: int) -> int:
        asked.append((number, rows))
        return number + 1

    labels, x_t = torch.tensor([0, 1, 2, 0, 1, 2, 0]), random(7, 3, 8, 8)
    options = {"labels": labels, "null_label": NULL, "guidance": guidance}
    expected = Denoiser(network, GaussianDiffusion(SCHEDULE), **options)(x_t, 9.0)
    network.batch_sizes.clear()
    sized = Denoiser(network, GaussianDiffusion(SCHEDULE), batch_size=4, smallest_batch=smallest, **options)
    torch.testing.assert_close(sized(x_t, 9.0).x_0, expected.x_0, rtol=1e-4, atol=1e-5)
    rows = 1 if guidance == 1 else 2
    assert network.batch_sizes == [4 * rows, 4 * rows]
    sized(x_t[:6], 9.0)
    assert network.batch_sizes[2:] == [4 * rows, 3 * rows]
    sized(x_t.requires_grad_(), 9.0)  # a backward pass keeps the full shape
    assert network.batch_sizes[4:] == [4 * rows, 4 * rows]
    assert asked == [(3, rows), (2, rows)]


def test_by_default_the_prediction_is_clamped_and_the_rest_is_off(network):
    x_t = 3 * random(5, 3, 8, 8)
    plain = Denoiser(network, GaussianDiffusion(SCHEDULE), clip=None)(x_t, 30.0)
    assert plain.x_0.abs().max() > 1.1
    found = Denoiser(network, GaussianDiffusion(SCHEDULE))(x_t, 30.0)
    assert torch.equal(found.x_0, plain.x_0.clamp(-1, 1))
    assert network.batch_sizes == [5, 5]
    assert found.x_0.dtype == torch.float32
    parameters = inspect.signature(Denoiser.__init__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    for field in dataclasses.fields(SamplingOptions):
        if field.name in defaults and field.name != "labels":
            assert defaults[field.name] == field.default


def test_samplers_are_what_they_are_announced_as():
    known = {name: (spec.spacing, dict(spec.options), spec.evaluations(7)) for name, spec in SAMPLERS.items()}
    assert known == {
        "ancestral": ("trailing", {}, 7),
        "ddim": ("trailing", {"eta": 0.0}, 7),
        "dpm++": ("log_snr", {}, 7),
        "dpm++sde": ("trailing", {}, 7),
        "unipc": ("trailing", {}, 7),
        "heun": ("trailing", {}, 13),
    }
    for spec in SAMPLERS.values():
        assert spec.timesteps(SCHEDULE, 7) == timestep_grid(SCHEDULE, 7, spec.spacing)
        assert spec.timesteps(SCHEDULE, 7, "quadratic") == timestep_grid(SCHEDULE, 7, "quadratic")
        defaults = {name: p.default for name, p in inspect.signature(spec.function).parameters.items()}
        assert {name: defaults[name] for name in spec.options} == spec.options


@pytest.mark.parametrize("eta", [-0.01, 1.01, float("nan")])
def test_an_eta_outside_0_to_1_is_refused(network, eta):
    noise = ImageNoise.of_seed(0, [0], (3, 8, 8))
    with pytest.raises(UserError, match="eta must be between 0 and 1"):
        SAMPLERS["ddim"](Denoiser(network, GaussianDiffusion(SCHEDULE)), noise(), [5.0, -1.0], noise=noise, eta=eta)


def test_the_dynamic_limit_is_a_quantile_of_each_image():
    """99.5% of an image's own pixels, but never below 1; the limited image is divided by it (Saharia et al. 2022)."""
    # 2,001 pixels: the quantile is the 1,991st of them, whatever the precision in which PyTorch finds its rank
    x_0 = torch.cat([random(1, 3, 23, 29), 3 * random(1, 3, 23, 29, seed=1), 0.01 * random(1, 3, 23, 29, seed=2)])
    denoiser = Denoiser(lambda x, t, labels: x_0, GaussianDiffusion(SCHEDULE, "x_0"), clip="dynamic")
    found = denoiser(random(3, 3, 23, 29, seed=3), 20.0).x_0
    for image, expected in zip(found.double(), x_0.double(), strict=True):
        limit = max(1.0, float(np.quantile(expected.abs().numpy(), 0.995)))
        torch.testing.assert_close(image, expected.clamp(-limit, limit) / limit, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_t_is_exact_also_if_x_t_itself_is_in_half_precision(dtype):
    seen = []
    diffusion = GaussianDiffusion(NoiseSchedule(make_betas("linear", 1000)))
    denoiser = Denoiser(lambda x, t, labels: seen.append(t) or x, diffusion)
    answer = denoiser(torch.zeros(2, 3, 4, 4, dtype=dtype), 998.5)
    assert seen[0].tolist() == [998.5, 998.5]
    assert (answer.x_0.dtype, answer.epsilon.dtype) == (dtype, dtype)

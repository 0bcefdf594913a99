"""Bits/dim of models whose likelihood is known: Gaussian pixels and the exact network for them."""

import math
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Normal

from ddpm.common.errors import UserError
from ddpm.common.pixels import to_float, to_uint8
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.diffusion.schedule import NoiseSchedule, make_betas
from ddpm.evaluation import likelihood
from ddpm.evaluation.cache import Chunks
from ddpm.evaluation.likelihood import evaluate_likelihood, make_strata, plot_likelihood
from ddpm.model import Model

MEAN, STD, T = 0.1, 0.25, 40
SCHEDULE = NoiseSchedule(make_betas("linear", T, 0.01, 0.6))


class ExactNetwork(nn.Module):
    """Predicts x_0 and the reverse variance exactly for pixels N(mean of the class, STD²)."""

    def __init__(self, means=(MEAN,)):
        super().__init__()
        self.means = nn.Parameter(torch.tensor(means))
        before = SCHEDULE.alphas_cumprod_prev * STD**2 + 1 - SCHEDULE.alphas_cumprod_prev
        exact = (before * SCHEDULE.betas / ((1 - SCHEDULE.betas) * before + SCHEDULE.betas)).log()
        low, high = SCHEDULE.posterior_log_variance, SCHEDULE.betas.log()
        self.register_buffer("raw", 2 * (exact - low) / (high - low) - 1)

    def forward(self, x_t, t, labels):
        mean = self.means[labels if labels is not None else torch.zeros_like(t, dtype=torch.long)]
        t, mean = t.long(), mean.reshape(-1, 1, 1, 1)
        alpha_bar = SCHEDULE.alphas_cumprod.to(x_t.dtype)[t].reshape(-1, 1, 1, 1)
        gain = alpha_bar.sqrt() * STD**2 / (alpha_bar * STD**2 + 1 - alpha_bar)
        x_0 = mean + gain * (x_t - alpha_bar.sqrt() * mean)
        return torch.cat([x_0, self.raw.to(x_t.dtype)[t].reshape(-1, 1, 1, 1).expand_as(x_t)], 1)


def model_of(network=None, shape=(1, 8, 8), variance="learned_range", **labels):
    process = GaussianDiffusion(SCHEDULE, "x_0", variance)
    return Model(network or ExactNetwork(), process, image_shape=shape, **labels)


def pixels(count, shape=(1, 8, 8), mean=MEAN, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return to_uint8(mean + STD * torch.randn(count, *shape, generator=generator))


def exact_bits(images):
    """-log2 p of each image, by dimension, for levels well inside the range."""
    log_p = Normal(MEAN, STD).log_prob(to_float(images, torch.float64)) + math.log(2 / 255)
    return -log_p.flatten(1).mean(1) / math.log(2)


def evaluate(model, images, labels=None, **options):
    return evaluate_likelihood(model, images, labels, progress=False, **options)


def test_likelihood_of_all_timesteps_is_exact():
    images = pixels(60)
    result = evaluate(model_of(), images, budget=60 * T)
    assert result.timesteps_per_image == T
    assert result.images == 60
    assert result.dims == 64
    exact = exact_bits(images)
    assert result.bits_per_dim == pytest.approx(exact.mean().item(), abs=0.03)
    least = exact.std().item() / 60**0.5  # due to the images alone; the noise in x_t adds to it
    assert least < result.standard_error < 2 * least
    assert result.bits_per_dim == pytest.approx(result.prior + sum(term.bits for term in result.terms))


def test_likelihood_of_stratified_timesteps_is_unbiased():
    """Other seeds, same images: only timesteps and noise differ."""
    images = pixels(100)
    full = evaluate(model_of(), images, budget=100 * T)
    parts = [evaluate(model_of(), images, budget=1000, seed=seed) for seed in range(8)]
    assert parts[0].timesteps_per_image == 10
    values = torch.tensor([part.bits_per_dim for part in parts])
    assert values.unique().numel() == 8
    assert abs(values.mean() - full.bits_per_dim) < 4 * values.std() / 8**0.5 + 1e-3
    assert values.std() < parts[0].standard_error
    assert evaluate(model_of(), images, budget=1000, seed=3) == parts[3]


def test_likelihood_does_not_depend_on_the_batch_size():
    images = pixels(20)
    one, other = (evaluate(model_of(), images, budget=200, batch_size=size) for size in (3, 64))
    assert one.bits_per_dim == pytest.approx(other.bits_per_dim, abs=1e-5)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_likelihood_bound_is_higher_for_a_worse_model(variance):
    """Fixed variances are worse than the exact one, and a constant network is worse still."""

    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(()))

        def forward(self, x_t, t, labels):
            return torch.zeros_like(x_t)

    class MeanOnly(ExactNetwork):
        def forward(self, x_t, t, labels):
            return super().forward(x_t, t, labels).chunk(2, 1)[0]

    images = pixels(30)
    exact = evaluate(model_of(), images).bits_per_dim
    fixed = evaluate(model_of(MeanOnly(), variance=variance), images).bits_per_dim
    blind = evaluate(model_of(Blind(), variance=variance), images).bits_per_dim
    assert exact < fixed < blind


@pytest.fixture
def seen(monkeypatch):
    """The pairs of each network call, in chunks of 256; after `seen.most` pairs the evaluation dies."""

    class Seen(list):
        most = math.inf

    seen, term = Seen(), likelihood._term

    def counted(*arguments):
        if sum(seen) >= seen.most:
            raise KeyboardInterrupt
        found = term(*arguments)
        seen.append(len(found))
        return found

    monkeypatch.setattr(likelihood, "CHUNK", 256)
    monkeypatch.setattr(likelihood, "_term", counted)
    return seen


def test_likelihood_resumes_after_a_kill(cache, seen):
    """Chunks computed before the kill are not computed again, and other settings do not use them."""
    images = pixels(40)
    expected = evaluate(model_of(), images)
    assert sum(seen) == 40 * T
    shutil.rmtree(cache)
    seen.clear()
    seen.most = 600
    with pytest.raises(KeyboardInterrupt):
        evaluate(model_of(), images)
    seen.clear()
    seen.most = math.inf
    for _ in range(2):
        assert evaluate(model_of(), images) == expected
        assert sum(seen) == 40 * T - 512
    for other in ({"images": images.flip(0)}, {"seed": 1}, {"budget": 800}, {"batch_size": 9}):
        seen.clear()
        evaluate(model_of(), **{"images": images, **other})
        assert sum(seen) == other.get("budget", 40 * T)


def test_likelihood_divides_the_work_among_processes(cache, seen, monkeypatch):
    images = pixels(40)
    expected = evaluate(model_of(), images)
    shutil.rmtree(cache)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(Chunks, "wait", lambda chunks: pytest.fail("waits") if chunks.missing() else None)
    shares = []
    for rank in ("1", "0"):
        seen.clear()
        monkeypatch.setenv("RANK", rank)
        if rank == "1":  # has computed its share, and waits for the first
            with pytest.raises(pytest.fail.Exception, match="waits"):
                evaluate(model_of(), images)
        else:
            assert evaluate(model_of(), images) == expected
        shares.append(sum(seen))
    assert shares == [40 * T - 3 * 256, 3 * 256]


def test_likelihood_does_not_compile_for_every_batch_size(monkeypatch):
    model, compiled = model_of(), []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compiled.append(self))
    model._copies.compiled = True  # as after sampling many images on a GPU
    evaluate(model, pixels(4))
    assert not compiled


def test_likelihood_passes_labels_to_the_network():
    model = model_of(ExactNetwork((0.5, -0.5)), class_names=["light", "dark"])
    labels = torch.arange(20) // 10
    images = torch.cat([pixels(1, mean=0.5 - label, seed=i) for i, label in enumerate(labels.tolist())])
    right = evaluate(model, images, labels)
    in_small_batches = evaluate(model, images, labels, batch_size=3)
    assert in_small_batches.bits_per_dim == pytest.approx(right.bits_per_dim, abs=1e-4)
    wrong = evaluate(model, images, 1 - labels)
    assert right.bits_per_dim < wrong.bits_per_dim - 1
    with pytest.raises(UserError, match="needs labels"):
        evaluate(model, images)


def test_likelihood_counts_the_dimensions_of_the_original():
    grey = pixels(20)
    colour = model_of(shape=(3, 8, 8))
    tripled = evaluate(colour, grey.expand(-1, 3, -1, -1))
    result = evaluate(colour, grey)
    assert result.dims == 64
    assert tripled.dims == 192
    assert result.bits_per_dim == pytest.approx(3 * tripled.bits_per_dim)
    assert result.standard_error == pytest.approx(3 * tripled.standard_error)
    assert result.prior == pytest.approx(3 * tripled.prior)
    assert result.bits_per_dim == pytest.approx(result.prior + sum(term.bits for term in result.terms))


def test_rate_distortion_is_the_posterior_standard_deviation():
    images = pixels(200)
    result = evaluate(model_of(), images, budget=200 * T)
    curve = result.rate_distortion
    assert curve[0][0] == pytest.approx(result.prior)
    assert curve[-1] == (pytest.approx(result.bits_per_dim), 0.0)
    rates, distortions = zip(*curve, strict=True)
    assert list(rates) == sorted(rates)
    alpha_bar = SCHEDULE.alphas_cumprod.flip(0)
    spread = STD * ((1 - alpha_bar) / (alpha_bar * STD**2 + 1 - alpha_bar)).sqrt() * 127.5
    torch.testing.assert_close(torch.tensor(distortions[:-1]).double(), spread, rtol=0.03, atol=0)
    # What remains to be sent once x_0's first noisy version is known: ½ log2(2πe Var) + log2 of the bin.
    remaining = 0.5 * math.log2(2 * math.pi * math.e * (distortions[-2] / 127.5) ** 2) - math.log2(2 / 255)
    assert result.terms[0].bits == pytest.approx(remaining, abs=0.05)


def test_error_of_the_prediction_is_the_root_of_the_mean_square_over_all_images():
    """A network that always predicts 0 errs by the images themselves, at every timestep."""

    class Blind(ExactNetwork):
        def forward(self, x_t, t, labels):
            return torch.zeros_like(x_t)

    images = torch.cat([pixels(3, mean=0.8), pixels(5, mean=0.0), pixels(2, mean=-0.9)])
    expected = 127.5 * to_float(images).double().square().mean().sqrt()
    for budget in (10 * T, 100):
        terms = evaluate(model_of(Blind(), variance="fixed_small"), images, budget=budget).terms
        assert [term.rmse for term in terms] == pytest.approx([float(expected)] * len(terms), rel=1e-5)


def test_timesteps_of_one_stratum_do_not_follow_from_those_of_another():
    """Within each stratum the images cover it evenly; the same image lies elsewhere in each of two equal strata."""
    strata = [range(1), range(1, 21), range(21, 41)]
    chosen = likelihood._draw_timesteps(strata, 40, seed=3)
    assert chosen.shape == (40, 3)
    for column, stratum in zip(chosen.T, strata, strict=True):
        assert column.bincount(minlength=41)[stratum.start : stratum.stop].unique().tolist() == [40 // len(stratum)]
    assert not torch.equal(chosen[:, 1] - 1, chosen[:, 2] - 21)
    assert not torch.equal(chosen, likelihood._draw_timesteps(strata, 40, seed=4))


def test_rate_distortion_of_wide_strata_is_on_the_same_curve():
    images = pixels(200)
    rates, distortions = zip(*evaluate(model_of(), images, budget=200 * T).rate_distortion, strict=True)
    coarse = evaluate(model_of(), images, budget=2000)
    curve = torch.tensor(list(zip(rates, distortions, strict=True)))
    for rate, distortion in coarse.rate_distortion[:-2]:
        nearest = (curve - torch.tensor([rate, distortion])).abs() / torch.tensor([1.0, 32.0])
        assert nearest.sum(1).min() < 0.15


def test_strata_end_at_powers_of_t():
    """Six strata after t = 0 over 1,000 timesteps: each ends √10 times as far as the one before, but for rounding."""
    ends = [stratum.stop for stratum in make_strata(1000, 7)]
    assert ends == pytest.approx([1000 ** (k / 6) for k in range(7)], rel=0.06)


@given(st.integers(2, 1200), st.data())
@settings(deadline=None)
def test_make_strata_partitions_the_timesteps(timesteps, data):
    count = data.draw(st.integers(1 if timesteps == 2 else 2, timesteps))
    strata = make_strata(timesteps, count)
    assert len(strata) == count
    assert [t for stratum in strata for t in stratum] == list(range(timesteps))
    if count > 1:
        assert strata[0] == range(1)


def test_plot_likelihood_saves_a_picture(tmp_path):
    from PIL import Image

    plot_likelihood(evaluate(model_of(), pixels(4)), tmp_path / "nll.png")
    with Image.open(tmp_path / "nll.png") as picture:
        assert picture.width > 1000
        assert len(picture.convert("L").getcolors()) > 10


def test_plot_likelihood_shows_bits_and_errors_by_timestep_and_rate(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    saved, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (saved.append(figure), savefig(figure, *a, **k)))
    result = evaluate(model_of(), pixels(3))
    plot_likelihood(result, tmp_path / "nll.png")
    bits, errors, curve = saved[0].axes
    middle = [(term.first + term.last + 2) / 2 for term in result.terms]
    per_timestep = [term.bits / len(range(term.first, term.last + 1)) for term in result.terms]
    assert bits.lines[0].get_xydata().tolist() == [
        [t, pytest.approx(b)] for t, b in zip(middle, per_timestep, strict=True)
    ]
    assert errors.lines[0].get_xydata().tolist() == [
        [t, term.rmse] for t, term in zip(middle, result.terms, strict=True)
    ]
    assert curve.lines[0].get_xydata().tolist() == [list(point) for point in result.rate_distortion]
    assert (bits.get_xscale(), bits.get_yscale(), errors.get_yscale()) == ("log", "log", "linear")
    assert ["dim" in axes.get_ylabel() for axes in (bits, errors, curve)] == [True, False, False]
    assert [limits[0] for limits in (errors.get_ylim(), curve.get_xlim(), curve.get_ylim())] == [0, 0, 0]
    assert ["RMSE" in axes.get_ylabel() for axes in (bits, errors, curve)] == [False, True, True]
    assert f"{result.bits_per_dim:.3f}" in bits.get_title()


def test_likelihood_takes_two_images():
    result = evaluate(model_of(), pixels(2))
    assert math.isfinite(result.bits_per_dim)
    assert result.standard_error > 0


def test_likelihood_refuses_other_shapes_and_single_images():
    with pytest.raises(UserError, match="1×6×8"):
        evaluate(model_of(), pixels(4, (1, 6, 8)))
    with pytest.raises(UserError, match="two images"):
        evaluate(model_of(), pixels(1))

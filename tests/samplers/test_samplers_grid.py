import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm.common.errors import UserError
from ddpm.diffusion.schedule import NoiseSchedule, make_betas, rescale_zero_terminal_snr
from ddpm.samplers import timestep_grid

SPACINGS = ["trailing", "leading", "uniform", "quadratic", "log_snr"]
LINEAR = NoiseSchedule(make_betas("linear", 1000))


@settings(deadline=None, max_examples=150)
@given(T=st.integers(2, 1100), data=st.data(), spacing=st.sampled_from(SPACINGS), zero_snr=st.booleans())
def test_exactly_s_falling_steps_down_to_the_data(T, data, spacing, zero_snr):
    betas = make_betas("linear", T)
    schedule = NoiseSchedule(rescale_zero_terminal_snr(betas) if zero_snr else betas)
    steps = data.draw(st.integers(1, T))
    grid = timestep_grid(schedule, steps, spacing)
    assert len(grid) == steps + 1
    assert all(a > b for a, b in itertools.pairwise(grid))
    assert grid[-1] == -1
    assert 0 <= grid[-2] <= grid[0] <= T - 1
    if spacing in ("trailing", "uniform", "log_snr"):
        assert grid[0] == T - 1
    if spacing != "log_snr":
        assert all(t == int(t) for t in grid)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_all_steps_is_the_whole_chain(spacing):
    grid = timestep_grid(LINEAR, 1000, spacing)
    if spacing != "log_snr":
        assert grid == list(range(999, -2, -1))


@pytest.mark.parametrize("steps", [7, 10, 50, 333, 999])
@pytest.mark.parametrize(
    ("spacing", "theirs"), [("trailing", "trailing"), ("leading", "leading"), ("uniform", "linspace")]
)
def test_diffusers_timesteps(spacing, theirs, steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(timestep_spacing=theirs)
    scheduler.set_timesteps(steps)
    # theirs counts 1000, 1000-1000/7, … in floating point and may go one step too far
    assert timestep_grid(LINEAR, steps, spacing)[:-1] == scheduler.timesteps[:steps].tolist()


def test_the_ddim_papers_quadratic_grid():
    """Song et al. 2021: τ_i = ⌊c i²⌋ with τ_S = 0.8 T, the grid of their CIFAR-10 row."""
    paper = (np.linspace(0, np.sqrt(1000 * 0.8), 20) ** 2).astype(int)
    assert timestep_grid(LINEAR, 20, "quadratic")[:-1] == paper[::-1].tolist()
    assert paper[-1] == 800
    hundred = timestep_grid(LINEAR, 100, "quadratic")  # whole numbers repeat near 0: each moves to the next free one
    assert hundred[0] == 800
    assert hundred[-5:] == [3, 2, 1, 0, -1]


@pytest.mark.parametrize("schedule", [LINEAR, NoiseSchedule(make_betas("cosine", 1000))])
def test_log_snr_grid_is_uniform_where_the_noise_is_at_most_80_times_the_signal(schedule):
    first, *values = [schedule.log_snr(t) for t in timestep_grid(schedule, 30, "log_snr")[:-1]]
    gap = np.diff(values)
    assert gap == pytest.approx(gap[0], rel=1e-6)
    assert first == schedule.log_snr(999) < values[0] - gap[0] == pytest.approx(-2 * math.log(80))


def test_log_snr_grid_falls_all_the_way_on_a_schedule_with_hardly_any_signal_left():
    grid = timestep_grid(NoiseSchedule(make_betas("linear", 5000)), 30, "log_snr")
    assert grid[0] == 4999
    assert all(a > b for a, b in itertools.pairwise(grid))


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_impossible_step_counts_are_refused(steps):
    with pytest.raises(UserError, match="1000 timesteps"):
        timestep_grid(LINEAR, steps)


def test_an_unknown_spacing_is_refused():
    with pytest.raises(UserError, match="trailing, leading"):
        timestep_grid(LINEAR, 10, "karras")

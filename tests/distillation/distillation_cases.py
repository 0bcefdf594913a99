"""An untrained teacher that is small enough for a test."""

from functools import partial

import tiny

TIMESTEPS = 16  # the stages of a student of 2 steps: 8, 4, 2
tiny_model = partial(tiny.tiny_model, timesteps=TIMESTEPS)

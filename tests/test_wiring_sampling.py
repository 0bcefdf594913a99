"""Every sampling option reaches the sampler: every image against the plain sampler of plain_sampler.py."""

import dataclasses
import math

import plain_sampler
import pytest

import ddpm

KEPT = plain_sampler.alphas_cumprod("linear", 40, 1e-3, 0.25)
DRAWN = {  # changes of the defaults
    "defaults": {},
    "sampler": {"sampler": "ancestral"},
    "steps": {"steps": 7},
    "spacing": {"spacing": "quadratic", "steps": 6},
    "own_spacing": {"sampler": "dpm++", "steps": 6},
    "labels": {"labels": [2, 0], "steps": 4},
    "class_names": {"labels": ["b"], "steps": 4},
    "guidance": {"guidance": 2.2, "labels": [1, 2, 0], "steps": 5},
    "guidance_interval": {"guidance": 2.2, "guidance_interval": (0.5, 1.5), "steps": 7},
    "guidance_rescale": {"guidance": 2.2, "guidance_rescale": 0.6, "steps": 5},
    "clip": {"clip": None, "steps": 5},
    "dynamic": {"clip": "dynamic", "guidance": 3.0, "steps": 5},
    "eta": {"sampler": "ddim", "eta": 0.8, "steps": 5},
    "unipc": {"sampler": "unipc", "steps": 5},
    "seed": {"seed": 12, "steps": 4},
    "batch_size": {"batch_size": 2, "steps": 4},
    "precision": {"precision": "fp32", "steps": 4},
}
SPACINGS = {"dpm++": "log_snr"}


@pytest.mark.parametrize("option", DRAWN)
def test_sampling_option_reaches_the_sampler(option):
    asked = DRAWN[option]
    model = plain_sampler.wave_model(KEPT)
    found = model.sample(5, **asked)
    given = {"sampler": "dpm++sde", "steps": 20, "clip": "static", "labels": [0, 1, 2], "seed": 0} | asked
    words = {"sampler", "guidance", "clip", "eta"} & set(given)
    case = plain_sampler.Plain(
        model.network.double(),
        interval=given.get("guidance_interval", (0.0, math.inf)),
        rescale=given.get("guidance_rescale", 0.0),
        **{word: given[word] for word in words},
    )
    labels = [["a", "b", "c"].index(label) if isinstance(label, str) else label for label in given["labels"]]
    spacing = given.get("spacing") or SPACINGS.get(given["sampler"], "trailing")
    timesteps = plain_sampler.grid(KEPT, given["steps"], spacing)
    for i, image in enumerate(found):
        x_T, *noises = plain_sampler.draws(given["seed"], i, given["steps"] + 1)
        rows = plain_sampler.sample(case, KEPT, x_T, timesteps, noises, labels[i % len(labels)])
        assert (image.double() - rows[-1][2].clamp(-1, 1)).abs().max() < 2e-4


def test_every_sampling_option_has_a_row():
    assert {field.name for field in dataclasses.fields(ddpm.SamplingOptions)} <= set(DRAWN)

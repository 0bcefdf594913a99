"""The benchmarks run, at toy size, and compare what they say they compare."""

import dataclasses
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

pytest.importorskip("denoising_diffusion_pytorch", reason="the peers are an extra of their own")

from benchmarks import compare, cpu, gpu, variants
from benchmarks.contestants import Diffusers, check_equal, randomise
from benchmarks.measure import spread
from benchmarks.problems import PROBLEMS
from ddpm.networks import UNet

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.mark.parametrize(("script", "arguments"), [(cpu, ["--problems", "toy"]), (gpu, ["--toy"])])
def test_a_comparison(script, arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "memory_of", lambda *_: {"train": 1.0, "sample": 1.0})  # a process each, slow to start
    script.main([*arguments, "--rounds", "1", "--out", str(tmp_path), "--pictures", str(tmp_path)])
    name = script.__name__.split(".")[1]
    (result,) = json.loads((tmp_path / f"speed_{name}.json").read_text())["problems"]
    assert (tmp_path / f"speed_{name}.png").stat().st_size > 1000
    assert {(row["phase"], row["contestant"]) for row in result["rows"]} == {
        (phase, who)
        for phase in ("train", "sample")
        for who in (
            "ddpm",
            "Diffusers, as documented",
            "Diffusers, bf16 channels-last",
            "denoising-diffusion-pytorch",
        )
    }
    for row in result["rows"]:
        assert row["images_per_second"] > 0
        if "Diffusers" in row["contestant"]:
            assert row["parameters"] == result["rows"][0]["parameters"]
    reference = [row for row in result["rows"] if row["contestant"] == "Diffusers, as documented"]
    assert all(row["times_as_fast"]["median"] == 1 for row in reference)


def test_other_ways_to_run_a_network_answer_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []  # by a compiler that would take half a minute
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(self))
    with ThreadPoolExecutor(2) as pool:
        for phase in ("train", "sample"):
            timed = variants.variants(PROBLEMS["toy"], phase, pool)
            assert timed["the network compiled"].args[0] is compiled[-1]  # a copy of it would not be compiled
            usual, halves = (
                torch.cat([part.flatten().float() for part in timed[name]()])
                for name in ("as it is", "each half of the batch on a thread of its own")
            )
            assert (usual - halves).norm() <= 0.02 * usual.norm()  # in bf16, and the gradients in another order
    rows = variants.compare(PROBLEMS["toy"], 1)
    assert len(rows) == 2 * len(timed)
    assert all(row["times_as_fast"]["median"] == 1 for row in rows if row["variant"] == "as it is")


def test_networks_that_differ_are_not_compared() -> None:
    problem = PROBLEMS["toy"]
    ours = UNet(problem.config, problem.image_size, 1, 1)
    randomise(ours)
    theirs = Diffusers(problem, CPU, ours.state_dict(), best=False).network
    check_equal(ours, theirs, problem, CPU)
    with torch.no_grad():
        ours.conv_in.weight[0, 0, 0, 0] += 0.5
    with pytest.raises(RuntimeError, match="answers differ"):
        check_equal(ours, theirs, problem, CPU)
    wider = UNet(problem.config.model_copy(update={"channels": 16}), problem.image_size, 1, 1)
    with pytest.raises(RuntimeError, match="parameters"):
        check_equal(wider, theirs, problem, CPU)


def test_spread() -> None:
    assert spread([5.0, 1.0, 2.0, 3.0, 4.0]) == {"median": 3.0, "low": 1.0, "high": 5.0}


def test_the_cards_problem_is_the_papers_network() -> None:
    card, paper = PROBLEMS["cifar10_gpu"], PROBLEMS["cifar10"]
    assert dataclasses.replace(card, training_batch=paper.training_batch, sampling_batch=paper.sampling_batch) == paper


def test_the_cards_recipe_at_toy_size(tmp_path: Path) -> None:
    """It trains, and ends in a figure."""
    flags = "--network.channels 8 --network.groups 4 --network.attention [] --training.batch_size 4 --training.steps 2"
    environment = {"PRESET": "digits", "DATA": "digits", "FEATURES": "builtin", "STEPS": "2"}
    done = subprocess.run(
        [ROOT / "benchmarks/cifar10_gpu.sh", "30", "8", tmp_path / "run", *flags.split()],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "run" / "fid.json").read_text())["figures"]
    assert figures["frechet_distance"]["value"] > 0  # what FID is called with other features

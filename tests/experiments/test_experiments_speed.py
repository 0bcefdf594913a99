"""Speed comparisons run at toy size, and compare equal networks."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

pytest.importorskip("denoising_diffusion_pytorch", reason="needs the extra `peers`")

from ddpm.networks import UNet
from experiments.speed import run, variants
from experiments.speed.contestants import PROBLEMS, Diffusers, check_equal, randomise
from experiments.speed.measure import median_and_deciles

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_run_compares_all_contestants(kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # each would be measured in a process of its own, which is slow to start
    monkeypatch.setattr(run, "memory_of", lambda *_: {"train": 1.0, "sample": 1.0})
    folders = ["--out", str(tmp_path), "--pictures", str(tmp_path)]
    run.main([kind, "--problems", "toy", "--rounds", "1", *folders])
    (result,) = json.loads((tmp_path / f"speed_{kind}.json").read_text())["problems"]
    assert (tmp_path / f"speed_{kind}.png").stat().st_size > 1000
    assert {(row["phase"], row["contestant"]) for row in result["rows"]} == {
        (phase, name)
        for phase in ("train", "sample")
        for name in (
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


def test_variants_give_equal_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []  # without the compiler, which would take half a minute
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


def test_check_equal_rejects_networks_that_differ() -> None:
    problem = PROBLEMS["toy"]
    ours = UNet(problem.config, problem.image_size, 1, 1)
    randomise(ours)
    theirs = Diffusers(problem, CPU, ours.state_dict(), best=False).network
    check_equal(ours, theirs, problem, CPU)
    with torch.no_grad():
        ours.conv_in.weight[0, 0, 0, 0] += 0.5
    with pytest.raises(RuntimeError, match="outputs differ"):
        check_equal(ours, theirs, problem, CPU)
    wider = UNet(problem.config.model_copy(update={"channels": 16}), problem.image_size, 1, 1)
    with pytest.raises(RuntimeError, match="parameters"):
        check_equal(wider, theirs, problem, CPU)


def test_median_and_deciles() -> None:
    assert median_and_deciles([5.0, 1.0, 2.0, 3.0, 4.0]) == {"median": 3.0, "low": 1.0, "high": 5.0}


def test_gpu_problem_is_the_papers_network() -> None:
    gpu, paper = PROBLEMS["cifar10_gpu"], PROBLEMS["cifar10"]
    assert dataclasses.replace(gpu, training_batch=paper.training_batch, sampling_batch=paper.sampling_batch) == paper


def test_run_refuses_toy_results_for_the_docs() -> None:
    with pytest.raises(SystemExit, match="add --out"):
        run.main(["cpu", "--problems", "toy"])


def test_memory_of_reports_both_phases() -> None:
    found = run.memory_of("toy", "ddpm")
    assert set(found) == {"train", "sample"}
    assert 0 < found["sample"] <= found["train"]  # a peak never falls, and sampling is measured first

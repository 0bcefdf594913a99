"""Several processes over gloo compute what one does, go on as fewer, and end together."""

import contextlib
import io
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ddpm import cli
from ddpm.common.errors import RunStopped, UserError
from ddpm.data import open_dataset
from ddpm.training import Config, dry_run, load_config, train

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ddpm.training"])
SECONDS = 240


def join(rank: int, processes: int, port: int, out: str) -> Path:
    """Be one process as torchrun would have started it; returns OUT.end/RANK, for what it ends with."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = io.StringIO()
    end = Path(f"{out}.end")
    end.mkdir(exist_ok=True)
    return end / str(rank)


def work(rank: int, processes: int, port: int, config: str, out: str, resume: bool) -> None:
    """Train."""
    end = join(rank, processes, port, out)
    try:
        train(load_config(config), out, resume=resume)
        end.write_text("finished")
    except (RunStopped, UserError, SystemExit) as error:
        end.write_text(f"{type(error).__name__}: {error}")


def talk(rank: int, processes: int, port: int, config: str, out: str, resume: bool) -> None:
    """Train, and end with what was printed."""
    end = join(rank, processes, port, out)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        train(load_config(config), out)
    end.write_text(printed.getvalue())


def measure(rank: int, processes: int, port: int, config: str, out: str, resume: bool) -> None:
    """`--dry-run`, for which every process by itself would take another time; ends with what it printed."""
    end = join(rank, processes, port, out)
    dry_run.FEWEST, dry_run.LEAST_SECONDS = 1, 1.0 * rank
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert cli.run(["train", config, "--dry-run"]) == 0
    end.write_text(printed.getvalue())


@pytest.fixture
def start():
    """start(processes, config, out) starts a run on several and returns them, first to last; none outlives its test."""
    everyone = []

    def start(processes: int, config: Config, out: Path, resume: bool = False, target: Callable = work) -> list:
        path = out.with_name(f"{out.name}-{time.monotonic_ns()}.yaml")
        path.write_text(config.to_yaml())
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        started = [
            CONTEXT.Process(target=target, args=(rank, processes, port, str(path), str(out), resume))
            for rank in range(processes)
        ]
        for process in started:
            process.start()
            everyone.append(process)
        return started

    yield start
    for process in everyone:
        process.kill()
        process.join()


def ends(processes: list, out: Path) -> list[str]:
    """Wait for all and tell what each ended with."""
    for process in processes:
        process.join(SECONDS)
        assert process.exitcode is not None, "a process hangs"
    texts = [Path(f"{out}.end") / str(rank) for rank in range(len(processes))]
    return [text.read_text() if text.exists() else "killed" for text in texts]


LONG = {
    "training.steps": 50,
    "training.checkpoint_every": 20,
    "training.preview_every": 50,
    "training.preview_images": 5,
    "training.preview_steps": 2,
    "diffusion.timestep_sampler": "loss_aware",
    "diffusion.timesteps": 4,
}


@pytest.fixture(scope="module")
def alone(tiny_yaml, tmp_path_factory) -> Path:
    """A run of one process."""
    return train(load_config(tiny_yaml, LONG), tmp_path_factory.mktemp("alone") / "run")


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_many_processes_give_the_losses_of_one(start, alone, tiny, files, tmp_path, processes):
    """Same images, noise, dropout and timesteps; only the order of summation differs. Three share unequally."""
    run = tmp_path / "run"
    assert ends(start(processes, tiny(**LONG), run), run) == ["finished"] * processes
    one, many = files.records(alone, "step", "loss"), files.records(run, "step", "loss")
    assert [record["step"] for record in many] == list(range(1, 51))
    for a, b in zip(one, many, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)


def test_run_stopped_on_four_processes_resumes_on_two(start, alone, tiny, files, tmp_path):
    run = tmp_path / "run"
    four = start(4, tiny(**LONG), run)
    files.wait_for_step(run, 3, lambda: all(process.is_alive() for process in four))
    os.kill(four[2].pid, signal.SIGTERM)  # one is told; all must leave at the same step
    assert ends(four, run) == ["SystemExit: 143"] * 4
    saved = files.records(run, "step")[-1]["step"]
    assert saved < 50
    assert max(int(path.name) for path in (run / "checkpoints").iterdir()) == saved
    assert ends(start(2, tiny(**LONG), run, resume=True), run) == ["finished"] * 2
    for a, b in zip(files.records(alone, "loss"), files.records(run, "loss"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)


def test_killed_process_ends_the_others_with_a_message(start, tiny, files, tmp_path):
    run = tmp_path / "run"
    three = start(3, tiny(steps=100_000, batch_size=6, checkpoint_every=2, lr_schedule="constant"), run)
    files.wait_for_step(run, 5, lambda: all(process.is_alive() for process in three))
    three[1].kill()
    said = ends(three, run)
    assert said[1] == "killed"
    for rank in (0, 2):
        assert said[rank].startswith(f"RunStopped: process {rank} lost another process"), said
        assert "--resume" in said[rank]
    saved = max(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    train(tiny(steps=saved + 2, batch_size=6, lr_schedule="constant"), run, resume=True)


def test_error_in_the_first_process_ends_all(start, tiny, tmp_path):
    run = tmp_path / "run"
    train(tiny(steps=1), run)
    said = ends(start(2, tiny(steps=1), run), run)
    assert said[0].startswith("UserError")
    assert "holds a run already" in said[0]
    assert said[1] == "SystemExit: 2"


def test_first_process_names_files_that_another_skipped(start, tiny, tmp_path, broken_tar):
    options = {"data.source": str(broken_tar(40, broken=[])), "data.labels": False, "data.streaming": True}
    config = tiny(steps=1, batch_size=20, **options)
    images, _ = open_dataset(config.data).draw(config.training.seed, range(10, 11))  # the second process's first
    broken_tar(40, broken=[int(images[0, 0, 0, 0])])
    first, second = ends(start(2, config, tmp_path / "run", target=talk), tmp_path / "run")
    assert "skipped 1 file" in first
    assert "skipped" not in second


def test_dry_run_on_two_processes_is_printed_once(start, tiny, tmp_path):
    first, second = ends(start(2, tiny(), tmp_path / "run", target=measure), tmp_path / "run")
    assert "images/s" in first
    assert second == ""

"""Compare speed with other libraries on this machine's processor or GPU.

    python -m experiments.speed.run cpu [--rounds N] [--problems cifar10,small28]
    python -m experiments.speed.run avx2 [--rounds N]    # the processor held to AVX2, without bf16, like most laptops
    python -m experiments.speed.run gpu [--rounds N]

About ten minutes on two cores, or under eight on a data-centre GPU, most of it for compiling. The machine should do
nothing else. Prints tables; writes speed_KIND.json and speed_KIND.png.
`--problems toy --out FOLDER --pictures FOLDER` tries the script itself, `gpu` also without a GPU.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.lib import (
    PICTURES,
    RESULTS,
    add_folders,
    command,
    command_line,
    launch,
    machine,
    parameter_count,
    save_picture,
    save_result,
)
from experiments.speed.contestants import PROBLEMS, Ours, alone, line_up
from experiments.speed.measure import ceilings, forward_flops, median_and_deciles, peak_memory, seconds, time_steps
from experiments.table_rows import PHASES, fastest
from experiments.tables import table

FEW_STEPS, MANY_STEPS = 20, 1000  # sampling steps: what we need, and DDPMPipeline's default
# problems and rounds
DEFAULTS = {"cpu": ("cifar10,small28", 7), "avx2": ("cifar10,small28", 3), "gpu": ("cifar10_gpu", 10)}
DEVICES = {"cpu": "the CPU", "avx2": "the CPU, held to AVX2", "gpu": "the GPU"}
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def compare(name: str, rounds: int, device: torch.device, log: Callable[[str], None]) -> dict[str, Any]:
    """Time all contestants on one problem; return the figures that go into the JSON file."""
    problem = PROBLEMS[name]
    limits = ceilings(device, small=name == "toy")
    contestants = line_up(problem, device)
    flops = {each.name: forward_flops(each, problem) for each in contestants}
    on_gpu = device.type == "cuda"
    memory = {} if on_gpu else {each.name: memory_of(name, each.name) for each in contestants}
    rows: list[dict[str, Any]] = []
    reference = contestants[1].name
    for phase, batch in problem.batches.items():
        times = time_steps(contestants, phase, rounds, device, log)
        if on_gpu:
            memory = {each.name: {phase: peak_memory(each, phase, device)} for each in contestants}
        for each in contestants:
            own = times[each.name]
            rate = batch / median_and_deciles(own)["median"]
            gflops = rate * flops[each.name] * (3 if phase == "train" else 1) / 1e9  # backward costs two forwards
            ratios = [theirs / ours for ours, theirs in zip(own, times[reference], strict=True)]
            rows.append(
                {
                    "phase": phase,
                    "contestant": each.name,
                    "parameters": parameter_count(each.network),
                    "batch": batch,
                    "images_per_second": rate,
                    "gflops": gflops,
                    "share_of_limit": gflops / fastest(limits)[1],
                    "times_as_fast": median_and_deciles(ratios),
                    "peak_gib": memory[each.name].get(phase),
                    "seconds": own,
                }
            )
    ours = contestants[0]
    assert isinstance(ours, Ours)
    few = seconds(lambda: ours.sample(FEW_STEPS, "dpm++"), device)
    step = next(row for row in rows if row["phase"] == "sample" and row["contestant"] == reference)
    many = MANY_STEPS * median_and_deciles(step["seconds"])["median"]
    drawing = {"images": problem.sampling_batch, "ours": few, "reference": many, "times_as_fast": many / few}
    return {"problem": name, "title": problem.title, "limits": limits, "rows": rows, "drawing": drawing}


def memory_of(problem: str, contestant: str) -> dict[str, float]:
    """Peak memory of one contestant on the CPU in GiB, by phase, measured in a process of its own."""
    child = [sys.executable, "-m", "experiments.speed.run", "memory", problem, contestant]
    answer = subprocess.run(child, capture_output=True, text=True)
    if answer.returncode:
        raise RuntimeError(answer.stderr)
    return json.loads(answer.stdout.splitlines()[-1])


def print_memory(options: argparse.Namespace) -> None:
    """Measure in the child process of `memory_of`.

    Sampling takes less memory than training, so it goes first: the peak of a process never falls.
    """
    device = torch.device("cpu")
    contestant = alone(options.contestant, PROBLEMS[options.problem], device)
    print(json.dumps({phase: peak_memory(contestant, phase, device) for phase in ("sample", "train")}))


def bars(results: list[dict[str, Any]], path: Path) -> None:
    """Plot speed as a multiple of that of Diffusers as documented, with the range of the middle 80 percent."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.4 * len(results)), layout="tight")
    axes = figure.subplots(len(results), 2, squeeze=False)
    for line, result in zip(axes, results, strict=True):
        for axis, phase in zip(line, PHASES, strict=True):
            rows = [row for row in result["rows"] if row["phase"] == phase][::-1]
            ratios = [row["times_as_fast"] for row in rows]
            medians = [ratio["median"] for ratio in ratios]
            below = [ratio["median"] - ratio["low"] for ratio in ratios]
            above = [ratio["high"] - ratio["median"] for ratio in ratios]
            axis.barh([row["contestant"] for row in rows], medians, xerr=[below, above], capsize=3, color="#4878a8")
            axis.set_title(f"{result['title']}: {PHASES[phase]}", fontsize=9)
            axis.tick_params(labelsize=8)
            axis.axvline(1, color="grey", linewidth=0.8)
        line[1].set_yticklabels([])
    for axis in axes[-1]:
        axis.set_xlabel("images per second, as a multiple of Diffusers as documented", fontsize=8)
    save_picture(figure, path)


def run(options: argparse.Namespace) -> None:
    """Compare all problems on one kind of device."""
    problems = options.problems.split(",")
    if "toy" in problems and (options.out == RESULTS or options.pictures == PICTURES):
        raise SystemExit("error: results of the toy do not belong in the docs; add --out FOLDER --pictures FOLDER")
    if options.kind == "gpu" and not torch.cuda.is_available() and problems != ["toy"]:
        raise SystemExit("error: no CUDA GPU found; try --problems toy --out FOLDER --pictures FOLDER")
    if options.kind == "avx2" and not AVX2.items() <= os.environ.items():  # the libraries read it when they are loaded
        os.execve(sys.executable, sys.orig_argv, os.environ | AVX2)
    device = torch.device("cuda" if options.kind == "gpu" and torch.cuda.is_available() else "cpu")
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    threads += ", held to AVX2" if options.kind == "avx2" else ""
    machine_and_software = f"{machine()}, PyTorch {torch.__version__}{threads}"
    print(machine_and_software)
    log = partial(print, file=sys.stderr)
    results = [compare(problem, options.rounds, device, log) for problem in problems]
    name = f"speed_{options.kind}"
    save_result(name, {"command": command(), "machine": machine_and_software, "problems": results}, options.out)
    bars(results, options.pictures / f"{name}.png")
    for shown in (name, f"drawing_{options.kind}"):
        print(table(shown, options.out))


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run it."""
    parser = command_line(__doc__)
    kinds = parser.add_subparsers(required=True)
    for kind, (problems, rounds) in DEFAULTS.items():
        one = kinds.add_parser(kind, help=f"compare on {DEVICES[kind]}")
        one.add_argument("--rounds", type=int, default=rounds, help=f"rounds of turns (default: {rounds})")
        some = f"comma-separated list of {', '.join(PROBLEMS)} (default: {problems})"
        one.add_argument("--problems", default=problems, help=some)
        add_folders(one, pictures=True)
        one.set_defaults(action=run, kind=kind)
    child = kinds.add_parser("memory")  # used by `memory_of`
    child.add_argument("problem", choices=PROBLEMS)
    child.add_argument("contestant")
    child.set_defaults(action=print_memory)
    options = parser.parse_args(arguments)
    options.action(options)


if __name__ == "__main__":
    launch(main)

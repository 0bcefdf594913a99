"""Every contestant on one problem: times, ratios, shares of the machine's limit, memory."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.contestants import Ours, alone, line_up, parameters
from benchmarks.measure import ceilings, forward_flops, peak_memory, seconds, spread, take_steps
from benchmarks.problems import PROBLEMS

PHASES = ("train", "sample")
FEW_STEPS, MANY_STEPS = 20, 1000  # our default sampler; DDPMPipeline's default


def compare(name: str, rounds: int, device: torch.device, say: Callable[[str], None]) -> dict[str, Any]:
    """The figures of one problem, as they are written to JSON."""
    problem = PROBLEMS[name]
    limits = ceilings(device, small=name == "toy")
    contestants = line_up(problem, device)
    flops = {each.name: forward_flops(each, problem) for each in contestants}
    memory = {} if device.type == "cuda" else {each.name: memory_of(name, each.name) for each in contestants}
    rows: list[dict[str, Any]] = []
    reference = contestants[1].name
    for phase in PHASES:
        batch = problem.training_batch if phase == "train" else problem.sampling_batch
        times = take_steps(contestants, phase, rounds, device, say)
        if device.type == "cuda":
            memory = {each.name: {phase: peak_memory(each, phase, device)} for each in contestants}
        for each in contestants:
            mine = times[each.name]
            rate = batch / spread(mine)["median"]
            gflops = rate * flops[each.name] * (3 if phase == "train" else 1) / 1e9
            rows.append(
                {
                    "phase": phase,
                    "contestant": each.name,
                    "parameters": parameters(each),
                    "batch": batch,
                    "images_per_second": rate,
                    "gflops": gflops,
                    "share_of_limit": gflops / limits["convolution_bf16"],
                    "times_as_fast": spread([b / a for a, b in zip(mine, times[reference], strict=True)]),
                    "peak_gib": memory[each.name].get(phase),
                    "seconds": mine,
                }
            )
    ours = contestants[0]
    assert isinstance(ours, Ours)
    few = seconds(lambda: ours.sample(FEW_STEPS, "dpm++"), device)
    a_step = next(r for r in rows if r["phase"] == "sample" and r["contestant"] == reference)
    many = MANY_STEPS * spread(a_step["seconds"])["median"]
    drawing = {"images": problem.sampling_batch, "ours": few, "reference": many, "times_as_fast": many / few}
    return {"problem": name, "title": problem.title, "limits": limits, "rows": rows, "drawing": drawing}


def memory_of(problem: str, contestant: str) -> dict[str, float]:
    """Peak memory of one contestant on the CPU, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.compare", problem, contestant]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        raise RuntimeError(answer.stderr)
    return json.loads(answer.stdout.splitlines()[-1])


def main() -> None:
    """The child of `memory_of`. Sampling, which takes less, comes first: a process's peak never falls."""
    problem, contestant, device = sys.argv[1], sys.argv[2], torch.device("cpu")
    chosen = alone(contestant, PROBLEMS[problem], device)
    print(json.dumps({phase: peak_memory(chosen, phase, device) for phase in reversed(PHASES)}))


if __name__ == "__main__":
    main()

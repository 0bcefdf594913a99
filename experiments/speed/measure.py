"""Time, arithmetic, memory and limits of the machine.

Contestants take turns, and ratios are taken within a round, so that other load on the machine slows all of them alike.
"""

import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ddpm.common.hardware import compute_dtype
from ddpm.networks import count_flops
from experiments.speed.contestants import Contestant, Lucidrains, Problem

SAMPLING_STEPS = 4  # of one timed sampling run; the result is the time per step
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def seconds(action: Callable[[], Any], device: torch.device) -> float:
    """Time that one call takes, including the GPU's work."""
    synchronise(device)
    began = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - began


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def take_turns(
    actions: dict[str, Callable[[], Any]], phase: str, rounds: int, device: torch.device, log: Callable[[str], None]
) -> dict[str, list[float]]:
    """Time every action once per round; return seconds by name and round. A warm-up round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for name, action in actions.items():
            taken = seconds(action, device)
            if number > 0:
                times[name].append(taken)
        log(f"{phase}: round {number} of {rounds}")
    return times


def time_steps(
    contestants: list[Contestant], phase: str, rounds: int, device: torch.device, log: Callable[[str], None]
) -> dict[str, list[float]]:
    """Seconds per training step (`phase` "train") or sampling step ("sample"), by contestant and round."""
    if phase == "train":
        return take_turns({each.name: each.train for each in contestants}, phase, rounds, device, log)
    runs = {each.name: partial(each.sample, SAMPLING_STEPS) for each in contestants}
    times = take_turns(runs, phase, rounds, device, log)
    return {name: [taken / SAMPLING_STEPS for taken in values] for name, values in times.items()}


def median_and_deciles(values: list[float]) -> dict[str, float]:
    """`median`, and the range `low` to `high` of the middle 80 percent."""
    ordered = sorted(values)
    tenth = (len(ordered) - 1) / 10
    return {
        "median": statistics.median(ordered),
        "low": ordered[round(tenth)],
        "high": ordered[round(9 * tenth)],
    }


def forward_flops(contestant: Contestant, problem: Problem) -> int:
    """Floating-point operations of one forward pass per image: our closed form, or PyTorch's counter for Lucidrains."""
    if isinstance(contestant, Lucidrains):
        device = next(contestant.network.parameters()).device
        x = torch.zeros(1, *problem.image_shape, device=device)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            contestant.network(x, torch.zeros(1, dtype=torch.int64, device=device))
        return counter.get_total_flops()
    with torch.device("meta"):
        return count_flops(problem.network())


def ceilings(device: torch.device, *, small: bool = False) -> dict[str, float]:
    """Limits of the machine, each the best of several tries.

    Returns GFLOP/s of a large convolution and of a large matrix product in each precision, and GB/s of a copy.
    """
    large = device.type == "cuda"  # work that fills a CPU is over before a GPU has launched it
    batch, channels, side, order = (1, 16, 8, 64) if small else (512, 256, 32, 8192) if large else (16, 256, 32, 2048)
    found = {}
    emulates = compute_dtype("auto", device) == torch.float32
    for name, dtype in DTYPES.items():
        if emulates and dtype != torch.float32:
            continue  # it takes minutes and cannot be the limit
        x = torch.randn(batch, channels, side, side, device=device, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
        weight = weight.contiguous(memory_format=torch.channels_last)
        taken = best(lambda x=x, weight=weight: torch.conv2d(x, weight, padding=1), device)
        found[f"convolution_{name}"] = 2 * x.numel() * channels * 9 / taken / 1e9
        matrix = torch.randn(order, order, device=device, dtype=dtype)
        found[f"matrix_{name}"] = 2 * order**3 / best(lambda matrix=matrix: matrix @ matrix, device) / 1e9
    source = torch.zeros(2**16 if small else 2**28 if large else 2**26, device=device)
    target = torch.empty_like(source)
    found["copy_gb"] = 2 * source.nbytes / best(lambda: target.copy_(source), device) / 1e9
    return found


@torch.no_grad()
def best(action: Callable[[], Any], device: torch.device, tries: int = 8) -> float:
    """Shortest time of several tries, in seconds."""
    return min(seconds(action, device) for _ in range(tries))


def peak_memory(contestant: Contestant, phase: str, device: torch.device) -> float:
    """Peak memory of one step, in GiB.

    On a CPU, that of the whole process, which should do nothing else. On a GPU, the part above what stays allocated
    between steps.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
    contestant.train() if phase == "train" else contestant.sample(1)
    if device.type == "cuda":
        return (torch.cuda.max_memory_allocated() - allocated) / 2**30
    return peak_of_process()


def peak_of_process() -> float:
    """Peak memory of this process, in GiB. On Linux, `ru_maxrss` would also count the parent's memory."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**20  # in kB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30  # macOS, in bytes

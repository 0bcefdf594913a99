"""Timing that a busy or warming machine cannot bend: contestants take turns, and ratios are taken within a turn."""

import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contestants import Contestant, Lucidrains
from benchmarks.problems import Problem
from ddpm.networks import UNet, count_flops

SAMPLING_STEPS = 4  # of one timed drawing; the time is given a step
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def seconds(action: Callable[[], Any], device: torch.device) -> float:
    synchronise(device)
    began = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - began


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def take_turns(
    actions: dict[str, Callable[[], Any]], what: str, rounds: int, device: torch.device, say: Callable[[str], None]
) -> dict[str, list[float]]:
    """Seconds of every action in every round, by name; one round before goes unseen."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(rounds + 1):
        for name, action in actions.items():
            taken = seconds(action, device)
            if turn > 0:
                times[name].append(taken)
        say(f"{what}: round {turn} of {rounds}")
    return times


def take_steps(
    contestants: list[Contestant], what: str, rounds: int, device: torch.device, say: Callable[[str], None]
) -> dict[str, list[float]]:
    """Seconds of every contestant in every round, a training step or a sampling step."""
    if what == "train":
        return take_turns({each.name: each.train for each in contestants}, what, rounds, device, say)
    drawings = {each.name: partial(each.sample, SAMPLING_STEPS) for each in contestants}
    times = take_turns(drawings, what, rounds, device, say)
    return {name: [taken / SAMPLING_STEPS for taken in mine] for name, mine in times.items()}


def spread(values: list[float]) -> dict[str, float]:
    """The median, and where the middle eight tenths lie."""
    ordered = sorted(values)
    tenth = (len(ordered) - 1) / 10
    return {
        "median": statistics.median(ordered),
        "low": ordered[round(tenth)],
        "high": ordered[round(9 * tenth)],
    }


def forward_flops(contestant: Contestant, problem: Problem) -> int:
    """Operations of one forward pass for one image: of the network as its paper writes it, or as PyTorch counts it."""
    if isinstance(contestant, Lucidrains):
        device = next(contestant.network.parameters()).device
        x = torch.zeros(1, problem.channels, *problem.image_size, device=device)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            contestant.network(x, torch.zeros(1, dtype=torch.int64, device=device))
        return counter.get_total_flops()
    with torch.device("meta"):
        return count_flops(UNet(problem.config, problem.image_size, problem.channels, problem.channels))


def ceilings(device: torch.device, *, small: bool = False) -> dict[str, float]:
    """What the machine can do: a large convolution and a large matrix product in each precision in GFLOP/s, and a
    copy in GB/s; the best of several goes."""
    large = device.type == "cuda"  # a card takes longer to start something than to do what fills a processor
    batch, channels, side, order = (1, 16, 8, 64) if small else (512, 256, 32, 8192) if large else (16, 256, 32, 2048)
    found = {}
    for name, dtype in DTYPES.items():
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
def best(action: Callable[[], Any], device: torch.device, goes: int = 8) -> float:
    return min(seconds(action, device) for _ in range(goes))


def peak_memory(contestant: Contestant, what: str, device: torch.device) -> float:
    """GiB at the most over one step: on the CPU of the whole process, which should do nothing else; on a card beyond
    what stays there between steps."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        stays = torch.cuda.memory_allocated()
    contestant.train() if what == "train" else contestant.sample(1)
    if device.type == "cuda":
        return (torch.cuda.max_memory_allocated() - stays) / 2**30
    return peak_of_process()


def peak_of_process() -> float:
    """GiB that this process has held at the most. Linux's `ru_maxrss` would count its parent's as well."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**20  # in kB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30  # macOS, in bytes

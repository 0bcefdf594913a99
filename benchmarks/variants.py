"""Other ways to run the small network on a processor, beside the one that is used: what was tried and left out.

    python -m benchmarks.variants [--rounds N] [--out FOLDER]

A few minutes, most of them the compiler's, on a machine with nothing else to do. Writes FOLDER/speed_variants.json.
"""

import argparse
import copy
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.contestants import randomise
from benchmarks.measure import DTYPES, spread, take_turns
from benchmarks.problems import PROBLEMS, Problem
from ddpm.networks import UNet
from ddpm.networks.norm import GroupNorm
from experiments.record import RESULTS, machine, save_result

CPU, USUAL = torch.device("cpu"), "as it is"
Pass = Callable[[nn.Module, Tensor, Tensor], list[Tensor]]


class NoNorm(nn.Module):
    def forward(self, x: Tensor, *conditioning: Tensor) -> Tensor:
        return x


def forward(network: nn.Module, x: Tensor, t: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [network(x, t)]


def forward_and_backward(network: nn.Module, x: Tensor, t: Tensor) -> list[Tensor]:
    loss = network(x, t).float().square().sum()
    return list(torch.autograd.grad(loss, list(network.parameters()), allow_unused=True))


def in_halves(once: Pass, pool: ThreadPoolExecutor) -> Pass:
    """Each half of the batch on a thread of its own, with half of the cores; then joined, or the gradients added."""

    def twice(network: nn.Module, x: Tensor, t: Tensor) -> list[Tensor]:
        one, other = pool.map(once, [network] * 2, x.chunk(2), t.chunk(2))
        if once is forward:
            return [torch.cat(one + other)]
        torch._foreach_add_(one, other)
        return one

    return twice


def half_the_cores(threads: int) -> None:
    """For the calling thread, and all that come after it; asking for the number makes PyTorch keep to it."""
    torch.set_num_threads(max(1, threads // 2))
    torch.get_num_threads()


def variants(problem: Problem, phase: str, pool: ThreadPoolExecutor) -> dict[str, Callable[[], list[Tensor]]]:
    """What is timed in a phase, by name. The network is the one that is trained, or the one that is drawn from."""
    training = phase == "train"
    once: Pass = forward_and_backward if training else forward
    batch = problem.training_batch if training else problem.sampling_batch
    network = UNet(problem.config, problem.image_size, problem.channels, problem.channels).eval()
    randomise(network)
    network.to(torch.float32 if training else DTYPES["bf16"]).to(memory_format=torch.channels_last)
    compiled, bare = copy.deepcopy(network), copy.deepcopy(network)
    compiled.compile(dynamic=False)
    for module in list(bare.modules()):
        for name, child in module.named_children():
            if isinstance(child, GroupNorm):
                setattr(module, name, NoNorm())
    x = torch.randn(batch, problem.channels, *problem.image_size).to(DTYPES["bf16"])
    x, t = x.contiguous(memory_format=torch.channels_last), torch.linspace(0, 999, batch)
    return {
        USUAL: partial(once, network, x, t),
        "the network compiled": partial(once, compiled, x, t),
        "each half of the batch on a thread of its own": partial(in_halves(once, pool), network, x, t),
        "without its normalisations, for comparison": partial(once, bare, x, t),
    }


def compare(problem: Problem, rounds: int) -> list[dict[str, object]]:
    """Images a second of every variant, and how many times as fast as the usual one in the same round."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(2, initializer=half_the_cores, initargs=(threads,)) as pool:
        both = threading.Barrier(2)
        list(pool.map(lambda _: both.wait(), range(2)))  # after this neither sets the number of the whole process
        torch.set_num_threads(threads)
        rows: list[dict[str, object]] = []
        for phase, batch in (("train", problem.training_batch), ("sample", problem.sampling_batch)):
            times = take_turns(variants(problem, phase, pool), phase, rounds, CPU, partial(print, file=sys.stderr))
            for name, mine in times.items():
                ratios = spread([b / a for a, b in zip(mine, times[USUAL], strict=True)])
                rate = batch / spread(mine)["median"]
                rows.append({"variant": name, "phase": phase, "images_per_second": rate, "times_as_fast": ratios})
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON")
    options = parser.parse_args(arguments)
    problem = PROBLEMS["small28"]
    about = {"command": "python -m benchmarks.variants", "machine": machine(), "title": problem.title}
    print(save_result("speed_variants", {**about, "rows": compare(problem, options.rounds)}, options.out))


if __name__ == "__main__":
    main()

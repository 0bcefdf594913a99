"""Time other ways to run the small network on a processor, which were tried and not adopted.

    python -m experiments.speed.variants [--rounds N]

Takes a few minutes, most of them for compiling. The machine should do nothing else. Writes speed_variants.json.
"""

import copy
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor, nn

from ddpm.networks.norm import GroupNorm
from experiments.lib import about, add_folders, command_line, launch, save_result
from experiments.speed.contestants import PROBLEMS, Problem, randomise
from experiments.speed.measure import DTYPES, median_and_deciles, take_turns

CPU, USUAL = torch.device("cpu"), "as it is"
Pass = Callable[[nn.Module, Tensor, Tensor], list[Tensor]]


class NoNorm(nn.Module):
    """Return the input unchanged, in place of a normalisation."""

    def forward(self, x: Tensor, *conditioning: Tensor) -> Tensor:
        return x


def forward(network: nn.Module, x: Tensor, t: Tensor) -> list[Tensor]:
    """Run the network as in sampling; return its output."""
    with torch.no_grad():
        return [network(x, t)]


def forward_and_backward(network: nn.Module, x: Tensor, t: Tensor) -> list[Tensor]:
    """Run the network as in training; return the gradients of its parameters."""
    loss = network(x, t).float().square().sum()
    return list(torch.autograd.grad(loss, list(network.parameters()), allow_unused=True))


def in_halves(once: Pass, pool: ThreadPoolExecutor) -> Pass:
    """Run each half of the batch in a thread with half of the cores; join the outputs or add the gradients."""

    def twice(network: nn.Module, x: Tensor, t: Tensor) -> list[Tensor]:
        first, second = pool.map(once, [network] * 2, x.chunk(2), t.chunk(2))
        if once is forward:
            return [torch.cat(first + second)]
        torch._foreach_add_(first, second)
        return first

    return twice


def half_the_cores(threads: int) -> None:
    """Halve the cores of the calling thread and of later threads. Reading the number back makes PyTorch apply it."""
    torch.set_num_threads(max(1, threads // 2))
    torch.get_num_threads()


def variants(problem: Problem, phase: str, pool: ThreadPoolExecutor) -> dict[str, Callable[[], list[Tensor]]]:
    """Actions to time, by name: on the float32 network in phase "train", on the bf16 network in phase "sample"."""
    training = phase == "train"
    once: Pass = forward_and_backward if training else forward
    batch = problem.batches[phase]
    network = problem.network().eval()
    randomise(network)
    network.to(torch.float32 if training else DTYPES["bf16"]).to(memory_format=torch.channels_last)
    compiled, bare = copy.deepcopy(network), copy.deepcopy(network)
    compiled.compile(dynamic=False)
    for module in list(bare.modules()):
        for name, child in module.named_children():
            if isinstance(child, GroupNorm):
                setattr(module, name, NoNorm())
    x = torch.randn(batch, *problem.image_shape).to(DTYPES["bf16"])
    x, t = x.contiguous(memory_format=torch.channels_last), torch.linspace(0, 999, batch)
    return {
        USUAL: partial(once, network, x, t),
        "the network compiled": partial(once, compiled, x, t),
        "each half of the batch on a thread of its own": partial(in_halves(once, pool), network, x, t),
        "without its normalisations, for comparison": partial(once, bare, x, t),
    }


def compare(problem: Problem, rounds: int) -> list[dict[str, object]]:
    """Images per second of every variant, and its speed relative to the usual way in the same round."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(2, initializer=half_the_cores, initargs=(threads,)) as pool:
        both = threading.Barrier(2)
        list(
            pool.map(lambda _: both.wait(), range(2))
        )  # both threads are initialised now, and cannot change the number of the process
        torch.set_num_threads(threads)
        rows: list[dict[str, object]] = []
        for phase, batch in problem.batches.items():
            times = take_turns(variants(problem, phase, pool), phase, rounds, CPU, partial(print, file=sys.stderr))
            for name, own in times.items():
                ratios = median_and_deciles([b / a for a, b in zip(own, times[USUAL], strict=True)])
                rate = batch / median_and_deciles(own)["median"]
                rows.append({"variant": name, "phase": phase, "images_per_second": rate, "times_as_fast": ratios})
    return rows


def main() -> None:
    """Parse the command line and time all variants of the small network."""
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of turns (default: 7)")
    add_folders(parser)
    options = parser.parse_args()
    problem = PROBLEMS["small28"]
    result = {**about(), "title": problem.title, "rows": compare(problem, options.rounds)}
    print(save_result("speed_variants", result, options.out))


if __name__ == "__main__":
    launch(main)

"""Compare speed on this machine's processor.

    python -m benchmarks.cpu [--rounds N] [--problems cifar10,small28] [--out FOLDER] [--pictures FOLDER]

About ten minutes on two cores with nothing else to do. Prints a table; writes FOLDER/speed_cpu.json and
docs/pictures/speed_cpu.png.
"""

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.compare import compare
from benchmarks.problems import PROBLEMS
from benchmarks.report import refuse_published, save, table
from experiments.record import PICTURES, RESULTS, machine


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="turns that each contestant takes")
    parser.add_argument("--problems", default="cifar10,small28", help=f"some of {', '.join(PROBLEMS)}")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON")
    parser.add_argument("--pictures", type=Path, default=PICTURES)
    options = parser.parse_args(arguments)
    if "toy" in options.problems:
        refuse_published(parser, options)
    where = f"{machine()}, PyTorch {torch.__version__}, {torch.get_num_threads()} threads"
    print(where)
    results = []
    for name in options.problems.split(","):
        results.append(compare(name, options.rounds, torch.device("cpu"), lambda line: print(line, file=sys.stderr)))
        print("\n" + table(results[-1]))
    save("speed_cpu", results, where, options.out, options.pictures)


if __name__ == "__main__":
    main()

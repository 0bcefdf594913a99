"""Compare speed on this machine's graphics card: throughput, share of its measured limit, and the same peers.

    python -m benchmarks.gpu [--rounds N] [--out FOLDER] [--pictures FOLDER] [--toy]

Under eight minutes on a data-centre card, most of it compilation. `--toy` tries the script itself on any processor.
Prints a table; writes FOLDER/speed_gpu.json and docs/pictures/speed_gpu.png.
"""

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.compare import compare
from benchmarks.report import refuse_published, save, table
from experiments.record import PICTURES, RESULTS, machine


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="turns that each contestant takes")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON")
    parser.add_argument("--pictures", type=Path, default=PICTURES)
    parser.add_argument("--toy", action="store_true", help="a toy network, on the processor where there is no card")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available() and not options.toy:
        parser.error("no CUDA card here; try --toy --out FOLDER --pictures FOLDER")
    if options.toy:
        refuse_published(parser, options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = f"{machine()}, PyTorch {torch.__version__}"
    print(where)
    name = "toy" if options.toy else "cifar10_gpu"
    result = compare(name, options.rounds, device, lambda line: print(line, file=sys.stderr))
    print("\n" + table(result))
    save("speed_gpu", [result], where, options.out, options.pictures)


if __name__ == "__main__":
    main()

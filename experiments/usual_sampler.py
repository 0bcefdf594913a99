"""Which sampler is the default? FID of 20 evaluations by the two forms of DPM-Solver++, each with its own spacing.

    python -m experiments.usual_sampler

The models are those of the MNIST and CIFAR-10 results, in runs/, judged by the standard Inception network against their
training images, or with --moments FOLDER against FOLDER/mnist_train.npz and FOLDER/cifar10_train.npz, their ready
moments. Writes experiments/results/usual_sampler.json.
"""

import argparse
from pathlib import Path
from typing import Any

from ddpm.evaluation.evaluate import evaluate
from ddpm.model import load
from ddpm.samplers import SAMPLERS
from experiments.headline import HEADLINES
from experiments.record import in_one_line, machine, save_result

NAMES, CANDIDATES, NUM, STEPS = ("mnist", "cifar10"), ("dpm++", "dpm++sde"), 2100, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=Path, metavar="FOLDER", help="ready moments of the training images")
    moments = parser.parse_args().moments
    rows: list[dict[str, Any]] = []
    with in_one_line("usual_sampler"):
        for name in NAMES:
            headline = HEADLINES[name]
            reference = headline.data if moments is None else str(moments / f"{name}_train.npz")
            for sampler in CANDIDATES:
                chosen = {"sampler": sampler, "spacing": SAMPLERS[sampler].spacing, "steps": STEPS, "num": NUM}
                sampling = {**headline.sampling, **chosen}
                report = evaluate(load(f"runs/{name}"), reference, metrics=["fid"], **sampling)
                fid = report.figures[0]
                made = {key: report.settings[key] for key in ("sampler", "spacing", "steps", "n", "weights", "engine")}
                rows.append({"name": name, "title": headline.title, **made, "figure": fid.title, "value": fid.value})
    about = {"command": "python -m experiments.usual_sampler", "machine": machine()}
    print(save_result("usual_sampler", {**about, "rows": rows}))


if __name__ == "__main__":
    main()

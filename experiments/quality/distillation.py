"""Compare students with their teacher, the bundled digits.

    python -m experiments.quality.distillation runs/digits-8 runs/digits-4

Samples the teacher with 20 and 4 steps of the default sampler, and each student with its own steps, and compares them
with the built-in digits: distance, precision and recall by the built-in features, and how often the built-in classifier
reads the digit that a sample was asked to be. A student with guidance is compared with the teacher with that guidance,
too. It writes distillation_digits.json after every row. Samples are kept in `--samples`, so a killed call is resumed by
the same command.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm.evaluation.classifier import read_digits
from ddpm.evaluation.evaluate import evaluate
from ddpm.generate import generate
from ddpm.model import Model, load
from experiments.lib import about, add_folders, command_line, launch, save_result

TEACHER = DATA = "digits"
TEACHER_STEPS = (20, 4)


def row(title: str, model: Model, samples: Path, num: int, **sampling: Any) -> dict[str, Any]:
    """Sample a model, unless `samples` (.npz) holds the samples already, and return its metrics."""
    if not samples.exists():
        generate(model, samples, num=num, **sampling)
    report = evaluate(str(samples), DATA, metrics=["fid", "prdc"], features="builtin", pictures=samples.with_suffix(""))
    assert report is not None  # with one process
    pixels = torch.from_numpy(np.load(samples)["arr_0"]).permute(0, 3, 1, 2)
    asked = torch.arange(len(pixels)) % (model.num_classes or 1)
    return {
        "title": title,
        "weights": model.weights_hash,
        "sampling": sampling,
        "n": len(pixels),
        "metrics": {one.key: one.value for one in report.metrics},
        "read_as_asked": round((read_digits(pixels) == asked).double().mean().item(), 4),
    }


def main() -> None:
    """Parse the command line and measure."""
    parser = command_line(__doc__ or "")
    parser.add_argument("students", nargs="*", help="runs or model folders")
    parser.add_argument("--num", type=int, default=2000, help="samples of each (default: 2000)")
    parser.add_argument("--samples", type=Path, default=Path("distillation"), metavar="FOLDER", help="kept samples")
    add_folders(parser)
    options = parser.parse_args()
    teacher, students = load(TEACHER), [load(name) for name in options.students]
    guidances = sorted({1.0, *(float(student.provenance.get("guidance", 1)) for student in students)})
    chosen: list[tuple[str, Model, dict[str, Any]]] = [
        (f"teacher, {steps} steps, guidance {guidance:g}", teacher, {"steps": steps, "guidance": guidance})
        for guidance in guidances
        for steps in TEACHER_STEPS
    ]
    for student in students:
        assert student.student is not None
        method = student.provenance["config"]["distillation"]["method"]
        taught = f"{method}, guidance {student.provenance['guidance']:g}"
        chosen.append((f"student, {student.student.steps} steps ({taught})", student, {}))
    rows: list[dict[str, Any]] = []
    for title, model, sampling in chosen:
        name = f"{model.weights_hash}-{'-'.join(f'{value:g}' for value in sampling.values())}.npz"
        rows.append(row(title, model, options.samples / name, options.num, **sampling))
        if model.student:
            rows[-1]["training"] = {key: model.provenance[key] for key in ("steps", "images", "seconds", "engine")}
        print(save_result("distillation_digits", {**about(), "reference": DATA, "rows": rows}, options.out))
        print(rows[-1], flush=True)


if __name__ == "__main__":
    launch(main)

"""Compare students with their teacher: distance, precision and recall, copies, and digits read as asked.

    python -m experiments.quality.distillation digits4 runs/digits-8 runs/digits-2 runs/digits-1
    python -m experiments.quality.distillation runs/cifar10-4 --name cifar10 --teacher runs/cifar10 --data cifar10

Samples the teacher with 20 and 4 steps of the default sampler, with `--ancestral N` also with 1,000 ancestral steps,
and each student with its own steps. A student with guidance is compared with the teacher with that guidance, too.
Metrics are by the built-in features; FID comes with `--reference`, precomputed statistics of the training images. The
audit for copies takes the training images of `--data` and needs its test images, for the digits MNIST's in $DDPM_DATA;
without them it is left out. Writes distillation_NAME.json after every row. Samples are kept in `--samples`, so a killed
call is resumed by the same command.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm.common.errors import UserError
from ddpm.data import open_dataset
from ddpm.evaluation.classifier import read_digits
from ddpm.evaluation.evaluate import evaluate
from ddpm.generate import generate
from ddpm.model import Model, load
from experiments.lib import about, add_folders, command_line, launch, parameter_count, save_result

TEACHER_STEPS = (20, 4)
METRICS = ["fid", "prdc", "levels"]
HELD_OUT = {"digits": "mnist:test"}  # other sources have their own test images


def held_out(data: str) -> str | None:
    """Return the SOURCE of images that nobody trained on, or None if it is not on this machine."""
    source = HELD_OUT.get(data, f"{data}:test")
    try:
        open_dataset(source).close()
    except UserError:
        return None
    return source


def row(
    title: str, model: Model, samples: Path, data: str, reference: str | None, num: int, **sampling: Any
) -> dict[str, Any]:
    """Sample a model, unless `samples` (.npz) holds the samples already, and return its metrics."""
    if not samples.exists():
        generate(model, samples, num=num, **sampling)
    test = held_out(data)
    report = evaluate(
        str(samples),
        data,
        metrics=[*METRICS, *(["memorisation"] if test else [])],
        features="builtin",
        test=test,
        pictures=samples.with_suffix(""),
    )
    assert report is not None  # with one process
    pixels = torch.from_numpy(np.load(samples)["arr_0"]).permute(0, 3, 1, 2)
    found: dict[str, Any] = {
        "title": title,
        "weights": model.weights_hash,
        "parameters": parameter_count(model.network),
        "sampling": sampling,
        "n": len(pixels),
        "metrics": {one.key: one.value for one in report.metrics},
    }
    if data == "digits":
        asked = torch.arange(len(pixels)) % (model.num_classes or 1)
        found["read_as_asked"] = round((read_digits(pixels) == asked).double().mean().item(), 4)
    if reference:
        standard = evaluate(str(samples), reference, metrics=["fid"], pictures=samples.with_suffix(""))
        assert standard is not None
        found["fid"] = standard.metrics[0].value
    if model.student:
        found["training"] = {key: model.provenance[key] for key in ("steps", "images", "seconds", "engine")}
    return found


def student_title(student: Model) -> str:
    """Say how a student was taught."""
    assert student.student is not None
    config, guidance = student.provenance["config"], student.provenance.get("guidance", 1)
    size, words = parameter_count(student.network), config["distillation"]["method"]
    words += f", guidance {guidance:g}, {size / 1e6:.2g} M parameters, predicts {config['diffusion']['prediction']}"
    steps = student.student.steps
    return f"student, {steps} step{'s' * (steps > 1)} ({words})"


def main() -> None:
    """Parse the command line and measure."""
    parser = command_line(__doc__ or "")
    parser.add_argument("students", nargs="*", help="runs or model folders")
    parser.add_argument("--name", default="digits", help="the result is distillation_NAME.json (default: digits)")
    parser.add_argument("--teacher", default="digits", help="a model (default: digits)")
    parser.add_argument("--data", default="digits", help="SOURCE of the real images (default: digits)")
    parser.add_argument("--reference", help="an .npz of the training images' mu, sigma and n, for FID")
    parser.add_argument("--num", type=int, default=2000, help="samples of each (default: 2000)")
    parser.add_argument("--ancestral", type=int, default=0, metavar="N", help="that many samples of 1,000 steps")
    parser.add_argument("--samples", type=Path, default=Path("distillation"), metavar="FOLDER", help="kept samples")
    add_folders(parser)
    options = parser.parse_args()
    teacher, students = load(options.teacher), [load(name) for name in options.students]
    guidances = sorted({1.0, *(float(student.provenance.get("guidance", 1)) for student in students)})
    chosen: list[tuple[str, Model, int, dict[str, Any]]] = [
        (f"teacher, {steps} steps, guidance {guidance:g}", teacher, options.num, {"steps": steps, "guidance": guidance})
        for guidance in guidances
        for steps in TEACHER_STEPS
    ]
    if options.ancestral:
        sampling = {"steps": 1000, "guidance": 1.0, "sampler": "ancestral"}
        chosen.insert(0, ("teacher, 1,000 ancestral steps, guidance 1", teacher, options.ancestral, sampling))
    for student in students:
        chosen.append((student_title(student), student, options.num, {}))
    rows: list[dict[str, Any]] = []
    for title, model, num, sampling in chosen:
        name = f"{model.weights_hash}-{'-'.join(map(str, sampling.values()))}-{num}.npz"
        rows.append(row(title, model, options.samples / name, options.data, options.reference, num, **sampling))
        result = {**about(), "reference": options.data, "rows": rows}
        print(save_result(f"distillation_{options.name}", result, options.out), rows[-1], flush=True)


if __name__ == "__main__":
    launch(main)

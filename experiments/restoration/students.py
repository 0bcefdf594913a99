"""Restore with a student and with its teacher: PSNR of every method.

    python -m experiments.restoration.students

The bundled student restores built-in digits in its own steps, the bundled teacher in the method's own steps or in those
of `--steps`, both without labels. Writes restoration_students.json after every task.
"""

from typing import Any

from torch import Tensor

from ddpm.common.fidelity import psnr
from ddpm.model import load
from ddpm.restoration import Task, restore
from experiments.lib import about, add_folders, command_line, first_images, launch, save_result
from experiments.restoration.images import measure

TASKS = [
    ("noise σ = 0.25", Task("denoise"), 0.25, ["ddrm", "ddnm", "dps"]),
    ("inpainting, half", Task("inpaint", mask="half"), 0.0, ["ddrm", "ddnm", "repaint", "dps"]),
    ("super-resolution 4×", Task("superresolve", scale=4), 0.0, ["ddrm", "ddnm", "dps"]),
    ("deblurring, σ = 0.05", Task("deblur", kernel="gaussian:1.5"), 0.05, ["ddrm", "ddnm", "dps"]),
]


def decibels(images: Tensor, originals: Tensor) -> float:
    """Mean PSNR."""
    return round(psnr(images.clamp(-1, 1), originals).mean().item(), 2)


def main() -> None:
    """Parse the command line and measure."""
    parser = command_line(__doc__ or "")
    parser.add_argument("--num", type=int, default=16, help="images (default: 16)")
    parser.add_argument("--steps", type=int, default=20, help="steps of the teacher (default: 20)")
    add_folders(parser)
    options = parser.parse_args()
    student, teacher = load("digits4"), load("digits")
    originals, _ = first_images(student, "digits", options.num)
    rows: list[dict[str, Any]] = []
    for title, task, noise, methods in TASKS:
        operator = task.operator(student.image_shape)
        y = measure(operator, originals, noise)
        rows.append({"task": title, "pseudo-inverse": decibels(operator.H_pinv(y), originals), "methods": {}})
        for method in methods:
            few = restore(student, y, operator, method=method, noise=noise).mean
            many = restore(teacher, y, operator, method=method, noise=noise, steps=options.steps).mean
            rows[-1]["methods"][method] = {"student": decibels(few, originals), "teacher": decibels(many, originals)}
            print(title, method, rows[-1]["methods"][method], flush=True)
        save_result(
            "restoration_students", {**about(), "steps": options.steps, "n": options.num, "rows": rows}, options.out
        )


if __name__ == "__main__":
    launch(main)

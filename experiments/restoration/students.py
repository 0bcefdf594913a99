"""Restore with a student in its own steps and with its teacher in many: PSNR of every method.

    python -m experiments.restoration.students digits4

The first test images of MNIST are degraded and restored without labels. Methods that `ddpm restore` refuses for a
student are measured too. Writes restoration_students.json after every task.
"""

from typing import Any

from ddpm.model import load
from ddpm.restoration import METHODS, Task, restore
from experiments.lib import about, add_folders, command_line, first_images, launch, save_result
from experiments.restoration.images import figures, measure

# title, task, and σ in units of images in [0, 1]
ROWS: list[tuple[str, Task, float]] = [
    ("noise σ = 0.25", Task("denoise"), 0.25),
    ("inpainting, half", Task("inpaint", mask="half"), 0.0),
    ("super-resolution 4×", Task("superresolve", scale=4), 0.0),
    ("deblurring, σ = 0.05", Task("deblur", kernel="gaussian:1.5"), 0.05),
]


def main() -> None:
    """Parse the command line and measure."""
    parser = command_line(__doc__ or "")
    parser.add_argument("student", help="a run or a model folder")
    parser.add_argument("--teacher", default="digits", help="a model (default: digits)")
    parser.add_argument("--data", default="mnist:test", help="SOURCE of the images (default: mnist:test)")
    parser.add_argument("--num", type=int, default=16, help="images (default: 16)")
    parser.add_argument("--steps", type=int, default=20, help="steps of the teacher (default: 20)")
    add_folders(parser)
    options = parser.parse_args()
    student, teacher = load(options.student), load(options.teacher)
    assert student.student is not None
    steps, student.student = student.student.steps, None  # with it, some methods are refused
    originals, _ = first_images(student, options.data, options.num)
    rows: list[dict[str, Any]] = []
    for title, task, sigma in ROWS:
        operator = task.operator(student.image_shape)
        y = measure(operator, originals, sigma)
        rows.append({"task": title, "pseudo-inverse": figures(operator.H_pinv(y), originals), "methods": {}})
        for name, method in METHODS.items():
            if not isinstance(operator, (method.noisy if sigma else method.noiseless) or ()):
                continue
            many = restore(teacher, y, operator, method=name, noise=sigma, steps=options.steps).mean
            few = restore(student, y, operator, method=name, noise=sigma, steps=steps).mean
            rows[-1]["methods"][name] = {"student": figures(few, originals), "teacher": figures(many, originals)}
            print(title, name, rows[-1]["methods"][name], flush=True)
        result = {**about(), "student_steps": steps, "steps": options.steps, "n": options.num}
        save_result("restoration_students", {**result, "rows": rows}, options.out)


if __name__ == "__main__":
    launch(main)

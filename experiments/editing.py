"""Measure what an edit keeps: the error of inversion round trips, and SDEdit's fidelity and realism by strength.

    python -m experiments.editing --model digits --data mnist:test --name editing_digits --images 16

Round trips invert the whole process and sample again, at equal network evaluations, by first order (DDIM) and second
order, without guidance and clipping, in float32. SDEdit: PSNR and SSIM with the originals, and the model's denoising
loss, for every strength. Pictures: both of these, the paper's interpolations, and digits translated to every class.
Writes NAME.json and NAME_*.png.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddpm.editing import Editor, coarse_to_fine, fidelity_curve, reconstructions, round_trip, translate
from ddpm.editing.pictures import draw_curve, draw_reconstructions
from ddpm.model import load
from ddpm.plotting.plots import plot_images
from experiments.lib import about, add_folders, command_line, first_images, launch, save_picture, save_result

METHODS = {1: "DDIM", 2: "midpoint (second order)"}  # by order
EVALUATIONS = (50, 100, 200)  # of a round trip, both ways together
DEPTHS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)  # of Ho et al.'s figure 9, as fractions of T = 1000
WEIGHTS = [i / 8 for i in range(9)]
TRANSLATED = 4  # images to translate to every class


def round_trips(editor: Editor, images: Tensor) -> list[dict[str, Any]]:
    """Error of a round trip in levels of 255, and PSNR in dB, by method and number of network evaluations."""
    rows = []
    for order, method in METHODS.items():
        for evaluations in EVALUATIONS:
            trip = round_trip(editor, images, evaluations=evaluations, order=order)
            row = {"method": method, "evaluations": evaluations, "error": trip.error * 127.5}
            rows.append(row | {"largest": trip.largest * 127.5, "psnr": trip.psnr})
            print(rows[-1], flush=True)
    return rows


def translations(editor: Editor, images: Tensor, labels: Sequence[int], num_classes: int) -> Tensor:
    """Images (N, C, H, W) and their translations to every class, (N, 1 + num_classes, C, H, W)."""
    columns = [images]
    for target in range(num_classes):
        columns.append(translate(editor, images, list(labels), target, evaluations=50))
    return torch.stack(columns, dim=1)


def main() -> None:
    """Parse the command line, measure and draw."""
    parser = command_line(__doc__)
    parser.add_argument("--model", default="digits", help="model to edit with (default: digits)")
    parser.add_argument("--data", default="mnist:test", help="SOURCE of the images (default: mnist:test)")
    parser.add_argument("--images", type=int, default=16, help="number of images (default: 16)")
    parser.add_argument("--steps", type=int, default=100, help="steps of a full SDEdit run (default: 100)")
    parser.add_argument("--name", default="editing_digits", help="name of the JSON file and of the pictures")
    add_folders(parser, pictures=True)
    options = parser.parse_args()
    model = load(options.model)
    images, labels = first_images(model, options.data, options.images, labels=model.num_classes is not None)
    editor = Editor(model, batch_size=len(images))

    def save(kind: str, figure: Any) -> None:
        save_picture(figure, options.pictures / f"{options.name}_{kind}.png")

    result = {"model": options.model, "weights": model.weights_hash, "data": options.data}
    result |= {"images": options.images, **about(), "round_trips": round_trips(editor, images), "curve": []}
    save_result(options.name, result, options.out)  # what a killed call leaves
    points = fidelity_curve(editor, images, steps=options.steps)
    result["curve"] = [
        {"strength": p.strength, "psnr": p.psnr if p.strength else None, "ssim": p.ssim, "surprise": p.denoising_loss}
        for p in points
    ]
    print(save_result(options.name, result, options.out), flush=True)
    save("curve", draw_curve(points))

    depths = (0.0, *DEPTHS)
    interpolator = editor.with_options(batch_size=len(WEIGHTS))
    rows = coarse_to_fine(interpolator, images[0], images[1], WEIGHTS, list(depths), steps=options.steps)
    columns = [f"λ = {weight:g}" for weight in WEIGHTS]
    save("interpolation", plot_images(rows, columns=columns, rows=[f"depth {depth:g}" for depth in depths]))
    if labels is not None and model.num_classes is not None:
        few, classes = images[:TRANSLATED], labels[:TRANSLATED].tolist()
        rows = translations(editor.with_options(batch_size=len(few)), few, classes, model.num_classes)
        save("classes", plot_images(rows, columns=["original", *(model.class_names or [])]))
    save("depths", draw_reconstructions(images, reconstructions(editor, images, DEPTHS, evaluations=50)))


if __name__ == "__main__":
    launch(main)

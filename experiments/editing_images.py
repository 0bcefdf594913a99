"""What an edit keeps: round trips of inversion, and SDEdit's fidelity and realism over its strength.

    python -m experiments.editing_images --model digits --data mnist:test --name editing_digits --images 16

Round trips: there and back through the whole process at equal network evaluations in all, first order (DDIM) and
second, guidance and clipping off, float32. SDEdit: PSNR and SSIM to the originals and the model's surprise, for
every strength. Pictures: both, the paper's two interpolations, and every digit translated to every class.
"""

import argparse
from dataclasses import replace

import torch

import ddpm
from ddpm.common.pixels import to_float
from ddpm.data import open_dataset
from ddpm.editing import Editor, coarse_to_fine, fidelity_curve, reconstructions, round_trip, translate
from ddpm.editing.images import draw_curve, draw_reconstructions
from ddpm.plotting.plots import plot_images, save_figure
from experiments.record import PICTURES, machine, save_result

COMMAND = "python -m experiments.editing_images --model {0.model} --data {0.data} --name {0.name} --images {0.images}"
EVALUATIONS = (50, 100, 200)  # of a round trip, both ways together
DEPTHS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)  # figure 9's, of T = 1000
WEIGHTS = [i / 8 for i in range(9)]
TRANSLATED = 4  # images that are shown as every class


def round_trips(editor: Editor, images: torch.Tensor) -> list[dict]:
    rows = []
    for order, method in {1: "DDIM", 2: "midpoint (second order)"}.items():
        for evaluations in EVALUATIONS:
            trip = round_trip(editor, images, evaluations=evaluations, order=order)
            rows.append({"method": method, "evaluations": evaluations, "error": trip.error * 127.5})
            rows[-1] |= {"largest": trip.largest * 127.5, "psnr": trip.psnr}
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="digits")
    parser.add_argument("--data", default="mnist:test")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=100, help="of a whole SDEdit run")
    parser.add_argument("--name", default="editing_digits", help="of the result and its pictures")
    arguments = parser.parse_args()
    model = ddpm.load(arguments.model)
    channels, *size = model.image_shape
    data = open_dataset(arguments.data, image_size=tuple(size), channels=channels, labels=model.num_classes is not None)
    pixels, labels = data.batch(list(range(arguments.images)))
    images = to_float(pixels)
    editor = Editor(model, batch_size=len(images))

    result = {"model": arguments.model, "weights": model.weights_hash, "data": arguments.data}
    result |= {"images": arguments.images, "command": COMMAND.format(arguments), "machine": machine()}
    result |= {"round_trips": round_trips(editor, images), "curve": []}
    save_result(arguments.name, result)  # what is done is kept, should the rest be cut short
    points = fidelity_curve(editor, images, steps=arguments.steps)
    result["curve"] = [
        {"strength": p.strength, "psnr": p.psnr if p.strength else None, "ssim": p.ssim, "surprise": p.surprise}
        for p in points
    ]
    save_figure(draw_curve(points), PICTURES / f"{arguments.name}_curve.png", overwrite=True)
    print(save_result(arguments.name, result), flush=True)
    line = replace(editor, batch_size=len(WEIGHTS))
    rows = coarse_to_fine(line, images[0], images[1], WEIGHTS, [0.0, *DEPTHS], steps=arguments.steps)
    depths = [f"depth {depth:g}" for depth in (0.0, *DEPTHS)]
    drawn = plot_images(rows, columns=[f"λ = {weight:g}" for weight in WEIGHTS], rows=depths)
    save_figure(drawn, PICTURES / f"{arguments.name}_interpolation.png", overwrite=True)
    if labels is not None and model.num_classes is not None:
        few, classes = images[:TRANSLATED], labels[:TRANSLATED].tolist()
        columns = [few]
        for target in range(model.num_classes):
            columns.append(translate(replace(editor, batch_size=len(few)), few, classes, target, evaluations=50))
        drawn = plot_images(torch.stack(columns, dim=1), columns=["original", *model.class_names])
        save_figure(drawn, PICTURES / f"{arguments.name}_classes.png", overwrite=True)
    trips = reconstructions(editor, images, DEPTHS, evaluations=50)
    save_figure(draw_reconstructions(images, trips), PICTURES / f"{arguments.name}_depths.png", overwrite=True)


if __name__ == "__main__":
    main()

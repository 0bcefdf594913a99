"""The figures of Ho et al. 2020 on a model trained here.

    python -m experiments.paper_figures mnist
    python -m experiments.paper_figures cifar10

NAME is a run directory below --runs, or `digits`, the bundled model. Writes to docs/pictures, each name beginning with
NAME: generation (figure 6), shared latents (7), interpolation (8), coarse-to-fine interpolation (9), coding (the lossy
reconstructions along figure 5's curve), rate_distortion (figure 5); and experiments/results/paper_NAME.json.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ddpm.common.pixels import to_float
from ddpm.data import open_dataset
from ddpm.editing import Editor, coarse_to_fine, interpolate
from ddpm.evaluation.likelihood import evaluate_likelihood, plot_likelihood
from ddpm.evaluation.sources import data_options
from ddpm.model import Model, load
from experiments.progressive import Sheet, progressive_coding, progressive_generation, save_sheet, shared_latents
from experiments.record import PICTURES, RESULTS, in_one_line, machine, save_result

LAMBDAS = [i / 8 for i in range(9)]
DEPTHS = [0.25, 0.5, 0.75, 1.0]  # of figure 9's, every other one
LIKELIHOOD_IMAGES = 1000


class Figures:
    """What all figures share: the model, held-out images of its data, and how many steps are taken."""

    def __init__(self, model: Model, data: str, steps: int, rows: int):
        self.model, self.steps, self.rows = model, min(steps, model.diffusion.schedule.timesteps), rows
        options = data_options(model) | {"source": data, "labels": model.num_classes is not None}
        self.dataset = open_dataset(**options)
        rows_shown = torch.randperm(len(self.dataset), generator=torch.Generator().manual_seed(0))
        pixels, self.labels = self.dataset.batch(rows_shown[: max(2 * rows, LIKELIHOOD_IMAGES)])
        self.pixels, self.images = pixels.cpu(), to_float(pixels.cpu())
        self.likelihood: dict[str, Any] = {}

    def generation(self, path: Path) -> None:
        moments = min(10, self.steps)
        save_sheet(progressive_generation(self.model, self.rows, moments=moments, steps=self.steps), path)

    def shared_latents(self, path: Path) -> None:
        save_sheet(shared_latents(self.model, siblings=7, steps=self.steps), path)

    def interpolation(self, path: Path) -> None:
        rows = [interpolate(self._editor(row), *self._pair(row), LAMBDAS, steps=self.steps) for row in range(self.rows)]
        pairs = [torch.stack(self._pair(row)) for row in range(self.rows)]
        sheet = [torch.cat([pair[:1], row, pair[1:]]) for pair, row in zip(pairs, rows, strict=True)]
        save_sheet(Sheet(torch.stack(sheet), LAMBDA_TITLES, [""] * self.rows), path)

    def coarse_to_fine(self, path: Path) -> None:
        images = coarse_to_fine(self._editor(0), *self._pair(0), LAMBDAS, DEPTHS, steps=self.steps)
        first, second = (image.expand(len(DEPTHS), 1, -1, -1, -1) for image in self._pair(0))
        last = self.model.diffusion.schedule.timesteps
        titles = [f"{round(depth * last)} steps" for depth in DEPTHS]
        save_sheet(Sheet(torch.cat([first, images, second], dim=1), LAMBDA_TITLES, titles), path)

    def coding(self, path: Path) -> None:
        labels = None if self.labels is None else self.labels[: self.rows]
        save_sheet(progressive_coding(self.model, self.images[: self.rows], labels), path)

    def rate_distortion(self, path: Path) -> None:
        count = min(LIKELIHOOD_IMAGES, len(self.pixels))
        labels = None if self.labels is None else self.labels[:count]
        found = evaluate_likelihood(self.model, self.pixels[:count], labels)
        plot_likelihood(found, path)
        self.likelihood = {
            "bits_per_dim": found.bits_per_dim,
            "standard_error": found.standard_error,
            "images": found.images,
            "timesteps_per_image": found.timesteps_per_image,
            "distortion_bits": found.terms[0].bits,  # L_0, Ho et al.'s distortion; all others are the rate
            "rate_bits": found.bits_per_dim - found.terms[0].bits,
            "rmse": found.terms[0].rmse,
            "rate_distortion": found.rate_distortion,
        }

    def _pair(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Two held-out images; of one class where the model has classes, since both ends are drawn with one label."""
        if self.labels is None:
            return self.images[2 * row], self.images[2 * row + 1]
        label = row % len(self.model.class_names or [])
        first, second = (self.labels == label).nonzero().flatten()[:2].tolist()
        return self.images[first], self.images[second]

    def _editor(self, row: int) -> Editor:
        label = None if self.labels is None else row % len(self.model.class_names or [])
        return Editor(self.model, labels=label)


LAMBDA_TITLES = ["source", *(f"λ = {value:g}" for value in LAMBDAS), "source"]


def figures_of(figures: Figures) -> dict[str, Callable[[Path], None]]:
    """Every figure by the end of its file's name."""
    names = ("generation", "shared_latents", "interpolation", "coarse_to_fine", "coding", "rate_distortion")
    return {name: getattr(figures, name) for name in names}


def paper_figures(
    name: str,
    model: Model,
    data: str,
    *,
    steps: int = 250,
    rows: int = 4,
    command: str = "",
    results: Path = RESULTS,
    pictures: Path = PICTURES,
) -> dict[str, Any]:
    """Draw all figures of a model on `data`, held-out images; returns what is in the JSON."""
    figures = Figures(model, data, steps, rows)
    pictures.mkdir(parents=True, exist_ok=True)
    seconds = {}
    for which, draw in figures_of(figures).items():
        began = time.monotonic()
        draw(pictures / f"{name}_{which}.png")
        seconds[which] = round(time.monotonic() - began, 1)
        print(f"{name}_{which}.png in {seconds[which]:.0f} s", flush=True)
    about = {"command": command, "machine": machine(), "weights": model.weights_hash, "data": data}
    result = {**about, "steps": figures.steps, "seconds": seconds, "likelihood": figures.likelihood}
    save_result(f"paper_{name}", result, results)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="a run directory below --runs, or digits")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--data", help="held-out images; by default the test split of what it was trained on")
    parser.add_argument("--steps", type=int, default=250, help="sampling steps")
    parser.add_argument("--rows", type=int, default=4)
    options = parser.parse_args()
    with in_one_line(options.name):
        model = load(options.name if options.name == "digits" else options.runs / options.name)
        source = options.data or f"{model.provenance['config']['data']['source']}:test"
        command = f"python -m experiments.paper_figures {options.name}"
        command += f" --steps {options.steps}" * (options.steps != 250)
        paper_figures(options.name, model, source, steps=options.steps, rows=options.rows, command=command)


if __name__ == "__main__":
    main()

"""Reproduce figures 5 to 9 of Ho et al. 2020 on a model trained here.

    python -m experiments.paper mnist
    python -m experiments.paper cifar10

NAME is a run directory below --runs, or `digits`, the bundled model. Writes NAME_FIGURE.png for these figures:
generation (figure 6), shared_latents (7), interpolation (8), coarse_to_fine interpolation (9), coding (the lossy
reconstructions along the curve of figure 5) and rate_distortion (5). Writes paper_NAME.json.
"""

import time
from pathlib import Path
from typing import Any

import torch

from ddpm.common.pixels import to_float
from ddpm.data import open_dataset
from ddpm.editing import Editor, coarse_to_fine, interpolate
from ddpm.evaluation.likelihood import evaluate_likelihood, plot_likelihood
from ddpm.evaluation.opening import data_options
from ddpm.model import Model, load
from experiments.evaluation import likelihood_figures
from experiments.lib import PICTURES, RESULTS, about, add_folders, command_line, launch, save_result
from experiments.progressive import Sheet, progressive_coding, progressive_generation, save_sheet, shared_latents

LAMBDAS = [i / 8 for i in range(9)]
LAMBDA_TITLES = ["source", *(f"λ = {value:g}" for value in LAMBDAS), "source"]
DEPTHS = [0.25, 0.5, 0.75, 1.0]  # every second one of figure 9, as fractions of T
FIGURES = ("generation", "shared_latents", "interpolation", "coarse_to_fine", "coding", "rate_distortion")
LIKELIHOOD_IMAGES = 1000


class Figures:
    """Figures of one model, by held-out images of its data. Every method in `FIGURES` writes one picture."""

    def __init__(self, model: Model, data: str, steps: int, rows: int):
        self.model, self.steps, self.rows = model, min(steps, model.diffusion.schedule.timesteps), rows
        options = data_options(model) | {"source": data, "labels": model.num_classes is not None}
        self.dataset = open_dataset(**options)
        order = torch.randperm(len(self.dataset), generator=torch.Generator().manual_seed(0))
        pixels, self.labels = self.dataset.batch(order[: max(2 * rows, LIKELIHOOD_IMAGES)])
        self.pixels, self.images = pixels.cpu(), to_float(pixels.cpu())
        self.likelihood: dict[str, Any] = {}

    def generation(self, path: Path) -> None:
        """Figure 6: the predicted x_0 during sampling."""
        moments = min(10, self.steps)
        save_sheet(progressive_generation(self.model, self.rows, moments=moments, steps=self.steps), path)

    def shared_latents(self, path: Path) -> None:
        """Figure 7: samples that share a latent x_t."""
        save_sheet(shared_latents(self.model, siblings=7, steps=self.steps), path)

    def interpolation(self, path: Path) -> None:
        """Figure 8: interpolations of held-out images, a pair per row."""
        rows = [interpolate(self._editor(row), *self._pair(row), LAMBDAS, steps=self.steps) for row in range(self.rows)]
        pairs = [torch.stack(self._pair(row)) for row in range(self.rows)]
        sheet = [torch.cat([pair[:1], row, pair[1:]]) for pair, row in zip(pairs, rows, strict=True)]
        save_sheet(Sheet(torch.stack(sheet), LAMBDA_TITLES, [""] * self.rows), path)

    def coarse_to_fine(self, path: Path) -> None:
        """Figure 9: interpolations of one pair, a depth per row."""
        images = coarse_to_fine(self._editor(0), *self._pair(0), LAMBDAS, DEPTHS, steps=self.steps)
        first, second = (image.expand(len(DEPTHS), 1, -1, -1, -1) for image in self._pair(0))
        last = self.model.diffusion.schedule.timesteps
        titles = [f"{round(depth * last)} steps" for depth in DEPTHS]
        save_sheet(Sheet(torch.cat([first, images, second], dim=1), LAMBDA_TITLES, titles), path)

    def coding(self, path: Path) -> None:
        """Progressive lossy reconstructions of held-out images."""
        labels = None if self.labels is None else self.labels[: self.rows]
        save_sheet(progressive_coding(self.model, self.images[: self.rows], labels), path)

    def rate_distortion(self, path: Path) -> None:
        """Figure 5: bits/dim and error by timestep, and error by bits received."""
        count = min(LIKELIHOOD_IMAGES, len(self.pixels))
        labels = None if self.labels is None else self.labels[:count]
        found = evaluate_likelihood(self.model, self.pixels[:count], labels)
        plot_likelihood(found, path)
        self.likelihood = likelihood_figures(found) | {"rate_distortion": found.rate_distortion}

    def _pair(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Two held-out images; of one class if the model has classes, because both are decoded with one label."""
        if self.labels is None:
            return self.images[2 * row], self.images[2 * row + 1]
        label = row % len(self.model.class_names or [])
        first, second = (self.labels == label).nonzero().flatten()[:2].tolist()
        return self.images[first], self.images[second]

    def _editor(self, row: int) -> Editor:
        label = None if self.labels is None else row % len(self.model.class_names or [])
        return Editor(self.model, labels=label)


def paper_figures(
    name: str,
    model: Model,
    data: str,
    *,
    steps: int = 250,
    rows: int = 4,
    results: Path = RESULTS,
    pictures: Path = PICTURES,
) -> dict[str, Any]:
    """Draw all figures of a model on the held-out images `data`; return the content of paper_NAME.json."""
    figures = Figures(model, data, steps, rows)
    pictures.mkdir(parents=True, exist_ok=True)
    seconds = {}
    for figure in FIGURES:
        began = time.monotonic()
        getattr(figures, figure)(pictures / f"{name}_{figure}.png")
        seconds[figure] = round(time.monotonic() - began, 1)
        print(f"{name}_{figure}.png in {seconds[figure]:.0f} s", flush=True)
    result = {**about(), "weights": model.weights_hash, "data": data}
    result |= {"steps": figures.steps, "seconds": seconds, "likelihood": figures.likelihood}
    save_result(f"paper_{name}", result, results)
    return result


def main() -> None:
    """Parse the command line and draw."""
    parser = command_line(__doc__)
    parser.add_argument("name", help="a run directory below --runs, or digits")
    parser.add_argument("--data", help="SOURCE of held-out images (default: the test split of the training data)")
    parser.add_argument("--steps", type=int, default=250, help="sampling steps (default: 250)")
    parser.add_argument("--rows", type=int, default=4, help="rows of the figures (default: 4)")
    add_folders(parser, pictures=True, runs="runs")
    options = parser.parse_args()
    model = load(options.name if options.name == "digits" else options.runs / options.name)
    source = options.data or f"{model.provenance['config']['data']['source']}:test"
    sizes = {"steps": options.steps, "rows": options.rows}
    paper_figures(options.name, model, source, **sizes, results=options.out, pictures=options.pictures)


if __name__ == "__main__":
    launch(main)

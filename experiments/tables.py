"""Put tables and pictures into README.md and docs/*.md.

    python -m experiments.tables            rewrites the tables in all pages
    python -m experiments.tables --check    exits with 1 if a page disagrees with the results

A page marks the place of a table by a pair of comments, and what is between them is replaced:

    <!-- table: mnist -->
    <!-- end of table -->

`pictures: NAME` in place of `table: NAME` shows pictures of docs/pictures. Missing results are shown as "not run".
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from experiments import table_rows
from experiments.lib import PICTURES, RESULTS, ROOT, command_line, load_result
from experiments.quality.headline import HEADLINES
from experiments.table_rows import NOTHING, PHASES, Result, Rows, command_now

NOT_RUN = "not run"

MARKED = re.compile(
    r"(?P<begin><!-- (?P<kind>table|pictures): (?P<name>\w+) -->\n).*?(?P<end><!-- end of (?P=kind) -->)", re.DOTALL
)

Table = Callable[[Path], Rows]  # from the folder of the results to the head and the rows


def table(name: str, results: Path = RESULTS) -> str:
    """Markdown of a table in `TABLES`, with a newline at its end."""
    head, *rows = TABLES[name](results)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rows))


def one_result(
    name: str, head: list[str], rows: Callable[[Result], Rows], columns: Callable[[Result], list[str]] | None = None
) -> Table:
    """Table of one result. `columns` makes the head if it depends on the result; then `head` is for the one not run."""

    def make(folder: Path) -> Rows:
        found = load_result(name, folder)
        body = rows(found) if found else []
        return [columns(found) if found and columns else head, *(body or [[NOT_RUN] * len(head)])]

    return make


def row_per_result(names: Mapping[str, str], head: list[str], cells: Callable[[Result], list[str]]) -> Table:
    """Table with a row per result. `names`: results by the title of their row; `cells`: the cells after the title."""

    def make(folder: Path) -> Rows:
        found = {title: load_result(name, folder) for title, name in names.items()}
        not_run = [NOT_RUN] * (len(head) - 1)
        return [head, *([title, *(cells(result) if result else not_run)] for title, result in found.items())]

    return make


def headlines(*names: str) -> Table:
    """A row per model: its size, its training and its metrics."""

    def make(folder: Path) -> Rows:
        columns = {
            name: table_rows.headline_columns(found) if (found := load_result(name, folder)) else {} for name in names
        }
        shown = list(dict.fromkeys(head for cells in columns.values() for head in cells)) or ["result"]
        rows = []
        for name, cells in columns.items():
            missing = NOTHING if cells else NOT_RUN
            rows.append([HEADLINES[name].title, *(cells.get(head, missing) for head in shown)])
        return [["", *shown], *rows]

    return make


def commands(folder: Path) -> Rows:
    """How to repeat each row, and where it was made."""
    rows = [["", "training", "judging", "trained on", "judged on"]]
    for name, headline in HEADLINES.items():
        cells = [f"`python -m experiments.quality.headline {name}`", NOT_RUN, NOT_RUN]
        if (result := load_result(name, folder)) is not None:
            evaluation = result["evaluation"]
            cells = [f"`{command_now(evaluation['command'])}`", result["training"]["engine"], evaluation["machine"]]
        rows.append([headline.title, f"`{headline.training}`", *cells])
    return rows


SPEED_HEAD = ["network", "", "library", "parameters", "images/s", "times as fast (middle 80%)", "GFLOP/s", "peak GiB"]
DRAWING_HEAD = ["network", "images", "20 steps of DPM-Solver++ here", "1,000 steps of DDPMPipeline", "times sooner"]
LIKELIHOOD_HEAD = ["bits/dim (bound)", "rate", "distortion", "RMSE (0..255)"]
STUDY_HEAD = ["schedule", "prediction", "seeds", "distance (built-in)", "KID (built-in)", "precision", "recall"]
STUDY_HEAD += ["misplaced levels"]
ABLATIONS_HEAD = ["changed", "images seen", "distance (built-in)", "times the recipe's", "misplaced levels"]
FEW_STEPS_HEAD = ["sampler", "spacing", "network evaluations"]  # if not run; otherwise the numbers of evaluations
DISTILLATION_HEAD = ["", "samples", "FID", "distance (built-in)", "precision / recall"]
DISTILLATION_HEAD += ["misplaced levels", "suspected copies, pixels / features", "read as asked"]
STUDENTS_HEAD = ["task", "pseudo-inverse", "method", "student (PSNR, dB)", "teacher (PSNR, dB)"]
RESTORATION_HEAD = ["task", "PSNR (dB) / SSIM"]  # if not run; otherwise the methods

TABLES: dict[str, Table] = {
    # docs/reports/results.md
    "mnist": headlines("mnist", "mnist_v"),
    "digits_read": row_per_result(
        {"bundled": "digits_read_bundled", "three minutes": "digits_read_three_minutes"},
        ["model", "samples", "guidance 1", "guidance 1.5", "the reader on MNIST's test images"],
        table_rows.digits_read,
    ),
    "cifar10": headlines(
        "cifar10",
        "cifar10_guided",
        "cifar10_unguided",
        "cifar10_muon",
        "cifar10_scaled",
        "cifar10_decayed",
        "cifar10_gpu",
    ),
    "photographs": headlines(
        "flowers32", "flowers32_muon", "flowers32_muon_guided", "flowers64", "emoji32", "emoji32_tuned"
    ),
    "commands": commands,
    "study_mnist": one_result("study", STUDY_HEAD, partial(table_rows.study, data="mnist")),
    "study_cifar10": one_result("study", STUDY_HEAD, partial(table_rows.study, data="cifar10")),
    "likelihood": row_per_result(
        {"mnist": "paper_mnist", "cifar10": "paper_cifar10"},
        ["model", "images", *LIKELIHOOD_HEAD],
        table_rows.paper_likelihood,
    ),
    # docs/guides/distill.md
    "distillation_digits": one_result("distillation_digits", DISTILLATION_HEAD, table_rows.distillation),
    "distillation_cifar10": one_result("distillation_cifar10", DISTILLATION_HEAD, table_rows.distillation),
    "restoration_students": one_result("restoration_students", STUDENTS_HEAD, table_rows.restoration_students),
    # docs/guides/evaluation.md
    "bits_per_dim": one_result(
        "bits_per_dim", ["model", "images", "timesteps each", *LIKELIHOOD_HEAD], table_rows.bits_per_dim
    ),
    "features_speed": one_result("features_speed", ["engine", "images/s", "machine"], table_rows.features_speed),
    "real_against_real": one_result("real_against_real", ["", "n", "FID"], table_rows.real_against_real),
    # docs/guides/restoration.md and docs/guides/editing.md
    "restoration_digits": one_result(
        "restoration_digits", RESTORATION_HEAD, table_rows.restoration, table_rows.restoration_head
    ),
    "restoration_cifar10": one_result(
        "restoration_cifar10", RESTORATION_HEAD, table_rows.restoration, table_rows.restoration_head
    ),
    "restoration_flowers64": one_result(
        "restoration_flowers64", RESTORATION_HEAD, table_rows.restoration, table_rows.restoration_head
    ),
    "restoration_gaussian": one_result(
        "restoration_gaussian", ["bias / spread", "σ", "method"], table_rows.posteriors, table_rows.posteriors_head
    ),
    "restoration_speed": one_result(
        "restoration_speed",
        ["", "images", "evaluations per image", "seconds", "times as fast (lowest to highest)", "PSNR (dB)"],
        table_rows.restoration_speed,
    ),
    "round_trips_digits": one_result(
        "editing_digits",
        ["method", "network evaluations", "error (of 255)", "largest (of 255)", "PSNR (dB)"],
        table_rows.round_trips,
    ),
    "sdedit_digits": one_result(
        "editing_digits", ["strength", "PSNR (dB)", "SSIM", "denoising loss"], table_rows.sdedit
    ),
    # docs/guides/scale.md
    "scale_about": one_result("scale", ["command", "machine", "took", "JPEG photographs"], table_rows.scale_about),
    "scale_training": one_result(
        "scale", ["processes", "threads of each", "images/s", "times one of one"], table_rows.scale_training
    ),
    "scale_reduction": one_result(
        "scale", ["preset", "parameters", "gradients (MB)", "ms", "GB/s"], table_rows.scale_reduction
    ),
    "scale_checkpoints": one_result(
        "scale", ["preset", "parameters", "checkpoint (MB)", "write (s)", "read (s)"], table_rows.scale_checkpoints
    ),
    "scale_decoding": one_result("scale", ["source", "images/s", "MB/s"], table_rows.scale_decoding),
    # docs/reports/speed.md and docs/guides/sampling.md
    "speed_cpu": one_result("speed_cpu", SPEED_HEAD, table_rows.speed),
    "speed_avx2": one_result("speed_avx2", SPEED_HEAD, table_rows.speed),
    "speed_gpu": one_result("speed_gpu", SPEED_HEAD, table_rows.speed),
    "drawing_cpu": one_result("speed_cpu", DRAWING_HEAD, table_rows.drawing),
    "drawing_avx2": one_result("speed_avx2", DRAWING_HEAD, table_rows.drawing),
    "drawing_gpu": one_result("speed_gpu", DRAWING_HEAD, table_rows.drawing),
    "speed_variants": one_result(
        "speed_variants", ["the small network on the CPU", *PHASES.values()], table_rows.variants
    ),
    "passes": one_result(
        "passes",
        ["a residual block, compiled", "passes needed", "passes made", "with PyTorch's own settings"],
        table_rows.passes,
    ),
    "time_to_quality": one_result(
        "time_to_quality",
        ["recipe", "parameters", "batch", "images seen", "seconds", "FID", "distance (built-in)"],
        table_rows.time_to_quality,
    ),
    "ablations_muon": one_result("ablations_muon", ABLATIONS_HEAD, table_rows.ablations),
    "ablations_short": one_result("ablations_short", ABLATIONS_HEAD, table_rows.ablations),
    "ablations_longer": one_result("ablations_longer", ABLATIONS_HEAD, table_rows.ablations),
    "usual_sampler": one_result("usual_sampler", ["model", "sampled with", "n", "FID"], table_rows.usual_sampler),
    "few_steps_digits": one_result("few_steps_digits", FEW_STEPS_HEAD, table_rows.few_steps, table_rows.few_steps_head),
    "few_steps_cifar10": one_result(
        "few_steps_cifar10", FEW_STEPS_HEAD, table_rows.few_steps, table_rows.few_steps_head
    ),
    # docs/reports/reliability.md and docs/guides/serving.md
    "torture": one_result("torture", ["disturbance", "times"], table_rows.torture),
    "fuzz": one_result("fuzz", ["target", "inputs", "branches", "failures"], table_rows.fuzz),
    "mutants": one_result("mutants", ["room", "files", "planted", "noticed", "share"], table_rows.mutants),
    "mutants_equivalent": one_result("mutants", ["why nothing changes", "times"], table_rows.mutants_equivalent),
    "mutants_left": one_result("mutants", ["where", "was", "became"], table_rows.mutants_left),
    "rounding": one_result(
        "rounding",
        ["", "one call, predicted x_0 in [-1, 1]", "images (of 255)", "pixels that change by a level or more"],
        table_rows.rounding,
    ),
    "serving": one_result(
        "serving",
        ["round", "asked at once", "answered", "right", "before (MiB)", "peak (MiB)", "after (MiB)"],
        table_rows.serving,
    ),
}

PAPER = {
    "generation": "Progressive generation: the predicted x_0 from noise to sample",
    "shared_latents": "Samples that share a latent x_t, a row a depth",
    "interpolation": "Interpolation of held-out images at 500 of 1,000 steps",
    "coarse_to_fine": "Interpolation from coarse to fine, a row a depth",
    "coding": "Progressive coding: what a receiver sees of held-out images as their bits arrive",
    "rate_distortion": "Bits/dim by timestep, error by timestep, and error by bits received",
}
GALLERIES: dict[str, dict[str, str]] = {
    **{
        name: {
            f"{name}.png": f"Samples: {headline.title}",
            f"{name}-closest-pairs.png": "The samples closest to a training image, by pixels and by features, above it",
        }
        for name, headline in HEADLINES.items()
    },
    "study": {
        f"study_{data}.png": f"Samples of every kind of the study on {title}, all of seed 0"
        for data, title in (("mnist", "MNIST"), ("cifar10", "CIFAR-10"))
    },
    "speed": {
        f"speed_{kind}.png": f"Images per second compared with Diffusers as documented, on a {title}"
        for kind, title in (("cpu", "CPU"), ("gpu", "GPU"))
    },
    "bits_per_dim": {"bits_per_dim.png": "The bundled model: bits/dim and error by timestep, error by bits received"},
    "time_to_quality": {
        "time_to_quality_ours.png": "The first samples of ddpm, none of them chosen",
        "time_to_quality.png": "The first samples of every contestant, ddpm with the preset of version 0.1",
    },
    "ablations": {
        "ablations_muon.png": "Samples of the recipe with Muon and of every variant, all of seed 0",
        "ablations_short.png": "Samples of the recipe before and of every variant, all of seed 0",
        "ablations_longer.png": "The same of those that were trained for longer",
    },
    "few_steps": {
        f"few_steps_{name}.png": f"Quality against network evaluations, {name}" for name in ("digits", "cifar10")
    },
    **{
        f"paper_{name}": {f"{name}_{figure}.png": f"{caption} ({name})" for figure, caption in PAPER.items()}
        for name in ("mnist", "cifar10")
    },
}


def pages(root: Path = ROOT) -> list[Path]:
    """All pages that may hold tables."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def rendered(text: str, results: Path = RESULTS, pictures: Path = PICTURES) -> str:
    """Text of a page with its tables and pictures up to date."""

    def body(found: re.Match[str]) -> str:
        content = table(found["name"], results) if found["kind"] == "table" else gallery(found["name"], pictures)
        return found["begin"] + content + found["end"]

    return MARKED.sub(body, text)


def gallery(name: str, pictures: Path = PICTURES) -> str:
    """Markdown of the existing pictures of a gallery, one per line."""
    found = [(file, caption) for file, caption in GALLERIES[name].items() if (pictures / file).exists()]
    return "".join(f"![{caption}](../pictures/{file})\n" for file, caption in found) or f"Pictures: {NOT_RUN}.\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, and rewrite or check all pages."""
    parser = command_line(__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page would change")
    options = parser.parse_args(arguments)
    stale = False
    for page in pages():
        text = page.read_text(encoding="utf-8")
        now = rendered(text)
        if now != text:
            stale = True
            print(f"{page.relative_to(ROOT)} {'disagrees with the results' if options.check else 'rewritten'}")
            if not options.check:
                page.write_text(now, encoding="utf-8")
    sys.exit(1 if options.check and stale else 0)


if __name__ == "__main__":
    main()

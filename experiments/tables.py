"""The tables of README.md and docs/*.md, made from experiments/results/*.json.

    python -m experiments.tables            rewrites every table in place
    python -m experiments.tables --check    exits 1 where a page and the results disagree

A page asks for a table by a pair of comments, and what is between them is replaced:

    <!-- table: mnist -->
    <!-- end of table -->

`pictures: NAME` in place of `table: NAME` shows pictures of docs/pictures. What was not run says so.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.evaluation_tables import EVALUATION_TABLES
from experiments.headline import HEADLINES
from experiments.record import PICTURES, RESULTS, ROOT, load_result
from experiments.restoration_tables import RESTORATION_TABLES
from experiments.scale_tables import SCALE_TABLES
from experiments.speed_tables import NOT_RUN, SPEED_TABLES, Rows, or_not_run, spread

MARKED = re.compile(
    r"(?P<begin><!-- (?P<kind>table|pictures): (?P<name>\w+) -->\n).*?(?P<end><!-- end of (?P=kind) -->)", re.DOTALL
)


def pages(root: Path = ROOT) -> list[Path]:
    """Every page that may hold tables."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def rendered(text: str, results: Path = RESULTS, pictures: Path = PICTURES) -> str:
    """A page with all its tables and pictures as they are now."""

    def body(found: re.Match[str]) -> str:
        content = table(found["name"], results) if found["kind"] == "table" else gallery(found["name"], pictures)
        return found["begin"] + content + found["end"]

    return MARKED.sub(body, text)


def table(name: str, results: Path = RESULTS) -> str:
    """A table by name, as Markdown that ends a line."""
    head, *rows = TABLES[name](results)
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def gallery(name: str, pictures: Path = PICTURES) -> str:
    """The pictures of a gallery that are there, a line each."""
    found = [(file, caption) for file, caption in GALLERIES[name].items() if (pictures / file).exists()]
    return "".join(f"![{caption}](pictures/{file})\n" for file, caption in found) or f"Pictures: {NOT_RUN}.\n"


# what one model came to


def headlines(*names: str) -> Callable[[Path], Rows]:
    """A row a model: what it cost and how it does."""

    def rows(results: Path) -> Rows:
        columns = [figure_columns(load_result(name, results)) for name in names]
        titles = [HEADLINES[name].title for name in names]
        shown = list(dict.fromkeys(title for column in columns for title in column))
        body = [
            [title, *(column.get(head, "–") if column else NOT_RUN for head in shown)]
            for title, column in zip(titles, columns, strict=True)
        ]
        return [["", *shown], *body] if shown else [["", "result"], *([title, NOT_RUN] for title in titles)]

    return rows


def figure_columns(result: dict[str, Any] | None) -> dict[str, str]:
    """The columns of one model's row, by their titles; none where it was not run."""
    if result is None:
        return {}
    training, standard, builtin = result["training"], result["standard"], result["builtin"]
    own, others = standard["figures"], builtin["figures"]
    (distance,) = own.values()
    columns = {
        "parameters": f"{training['parameters'] / 1e6:.1f} M",
        "images seen": f"{training['images']:,}",
        "training": duration(training["seconds"]),
        "drawn with": drawn_with(standard["settings"]),
        "n": f"{standard['settings']['n']:,}",
        distance["title"]: f"{distance['value']:.2f}" + (" (biased)" if distance["note"].startswith("BIASED") else ""),
        "distance (built-in features)": f"{others['frechet_distance']['value']:.3f}",
        "precision / recall": f"{others['precision']['value']:.2f} / {others['recall']['value']:.2f}",
    }
    if "levels" in others:
        columns["misplaced levels"] = f"{others['levels']['value']:.2f}"
    if "cas" in others:
        cas = others["cas"]
        columns["CAS (real images)"] = f"{cas['value']:.1%} ({cas['detail']['real']:.1%})"
    copies = [f"{others[f'copies_{how}']['value']:.1%}" for how in ("pixels", "features")]
    return columns | {"suspected copies, pixels / features": " / ".join(copies)}


def drawn_with(settings: dict[str, Any]) -> str:
    """Steps, sampler and spacing; files that do not name the last are of a time when all was spaced evenly in t."""
    return f"{settings['steps']} × {settings['sampler']}, {settings.get('spacing', 'trailing')}"


def commands(*names: str) -> Callable[[Path], Rows]:
    """How each row is made again, and where it was made."""

    def rows(results: Path) -> Rows:
        body = []
        for name in names:
            result, headline = load_result(name, results), HEADLINES[name]
            made = [f"`{headline.training}`", f"`python -m experiments.headline {name}`", NOT_RUN, NOT_RUN]
            if result is not None:
                evaluation = result["evaluation"]
                made[1:] = [f"`{evaluation['command']}`", result["training"]["engine"], evaluation["machine"]]
            body.append([headline.title, *made])
        return [["", "training", "judging", "trained on", "judged on"], *body]

    return rows


# the study


def study(data: str) -> Callable[[Path], Rows]:
    """Mean ± deviation over seeds of every kind."""

    def rows(results: Path) -> Rows:
        head = ["schedule", "prediction", "seeds", "distance (built-in)", "KID (built-in)", "precision", "recall"]
        head += ["misplaced levels"]
        found = load_result("study", results)
        mine = [row for row in found["rows"] if row["data"] == data] if found else []
        keys = ("frechet_distance", "kid", "precision", "recall", "levels")
        body = [
            [
                row["schedule"] or "none: one step of regression",
                {"epsilon": "ε"}.get(row["prediction"], row["prediction"]),
                str(row["seeds"]),
                *(spread(row[key], digits) for key, digits in zip(keys, (2, 3, 2, 2, 2), strict=True)),
            ]
            for row in mine
        ]
        return or_not_run(head, body)

    return rows


# the paper's figures, the pipeline itself


def likelihoods(*names: str) -> Callable[[Path], Rows]:
    """Bits/dim, as rate and distortion."""

    def rows(results: Path) -> Rows:
        head = ["model", "images", "bits/dim (bound)", "rate", "distortion", "RMSE (0..255)"]
        body = []
        for name in names:
            result = load_result(f"paper_{name}", results)
            cells = [NOT_RUN] * 5
            if result is not None:
                found = result["likelihood"]
                cells = [f"{found['images']:,}", f"{found['bits_per_dim']:.3f} ± {found['standard_error']:.3f}"]
                cells += [f"{found[key]:.3f}" for key in ("rate_bits", "distortion_bits")] + [f"{found['rmse']:.2f}"]
            body.append([name, *cells])
        return [head, *body]

    return rows


def digits_read(results: Path) -> Rows:
    """How often a classifier reads the digit that was asked for."""
    head = ["model", "samples", "guidance 1", "guidance 1.5", "the reader on MNIST's test images"]
    rows = []
    for name in ("bundled", "three_minutes"):
        found = load_result(f"digits_read_{name}", results)
        if found is None:
            rows.append([name.replace("_", " "), *[NOT_RUN] * 4])
            continue
        shares = [f"{found['read_as_asked_by_guidance'][key]:.1%}" for key in ("1.0", "1.5")]
        rows.append([name.replace("_", " "), f"{found['num']:,}", *shares, f"{found['reader_on_mnist_test']:.1%}"])
    return [head, *rows]


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{seconds / 3600:.1f} h"


def disturbances(results: Path) -> Rows:
    """What the crash campaign did to training runs, how often, and what it cost."""
    result = load_result("torture", results)
    if result is None:
        return [["disturbance", "times"], [NOT_RUN, NOT_RUN]]
    rows = [[name, str(count)] for name, count in result["counts"].items()]
    rows += [["checkpoints, weights, pictures or log lines lost", str(result["lost"])]]
    return [["disturbance", "times"], *rows, [f"took, on {result['machine']}", duration(result["seconds"])]]


def rounding(results: Path) -> Rows:
    """The largest differences between ways of computing the same."""
    head = ["", "one call, predicted x_0 in [-1, 1]", "images (of 255)", "pixels that change by a level or more"]
    found = load_result("rounding", results)
    body = [
        [
            row["way"],
            f"{row['call']:.1e}" if row["call"] else "0",
            f"{row['images_of_255']:.2g}",
            f"{row['pixels_changed']:.2%}",
        ]
        for row in (found["rows"] if found else [])
    ]
    return or_not_run(head, body)


def serving(results: Path) -> Rows:
    """Answers and the server's memory, a row a round of requests at once."""
    head = ["round", "asked at once", "answered", "right", "before (MiB)", "peak (MiB)", "after (MiB)"]
    found = load_result("serving", results)
    if found is None:
        return [head, [NOT_RUN] * len(head)]
    columns = ("answered", "right", "before", "peak", "after")
    return [
        head,
        *(
            [str(number), str(found["requests"]), *(f"{row[column]:,}" for column in columns)]
            for number, row in enumerate(found["rounds"], start=1)
        ),
    ]


CIFAR10 = ("cifar10", "cifar10_guided", "cifar10_unguided", "cifar10_gpu")
PHOTOGRAPHS = ("flowers32", "flowers64", "emoji32", "emoji32_tuned")
TABLES: dict[str, Callable[[Path], Rows]] = {
    "mnist": headlines("mnist", "mnist_v"),
    "digits_read": digits_read,
    "cifar10": headlines(*CIFAR10),
    "photographs": headlines(*PHOTOGRAPHS),
    "commands": commands(*HEADLINES),
    "study_mnist": study("mnist"),
    "study_cifar10": study("cifar10"),
    "likelihood": likelihoods("mnist", "cifar10"),
    "rounding": rounding,
    "torture": disturbances,
    "serving": serving,
    **EVALUATION_TABLES,
    **RESTORATION_TABLES,
    **SCALE_TABLES,
    **SPEED_TABLES,
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
        f"speed_{kind}.png": f"Images a second beside Diffusers as documented, on a {title}"
        for kind, title in (("cpu", "processor"), ("gpu", "card"))
    },
    "bits_per_dim": {"bits_per_dim.png": "The bundled model: bits/dim and error by timestep, error by bits received"},
    "time_to_quality": {"time_to_quality.png": "The first samples of every contestant, none of them chosen"},
    "ablations": {
        "ablations_short.png": "Samples of the recipe and of every variant, all of seed 0",
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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 where something would change")
    options = parser.parse_args(arguments)
    stale = [page for page in pages() if rendered(page.read_text(encoding="utf-8")) != page.read_text(encoding="utf-8")]
    for page in stale:
        print(f"{page.relative_to(ROOT)} {'disagrees with the results' if options.check else 'rewritten'}")
        if not options.check:
            page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(1 if options.check and stale else 0)


if __name__ == "__main__":
    main()

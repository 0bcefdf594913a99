"""The tables of docs/speed.md and of the steps in docs/sampling.md."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.record import load_result

NOT_RUN = "not run"
PHASES = {"train": "training step", "sample": "sampling step"}

Rows = list[list[str]]


def or_not_run(head: list[str], body: Rows) -> Rows:
    """A table, or one row that says so where there is nothing in it."""
    return [head, *(body or [[NOT_RUN] * len(head)])]


def spread(figure: dict[str, float | None], digits: int) -> str:
    """Mean ± deviation, where there is one."""
    error = "" if figure["std"] is None else f" ± {figure['std']:.{digits}f}"
    return f"{figure['mean']:.{digits}f}{error}"


def speed(name: str) -> Callable[[Path], Rows]:
    """Images a second of every contestant, and how many times as fast that is as the second of them."""

    def rows(results: Path) -> Rows:
        head = ["network", "", "library", "parameters", "images/s", "times as fast (middle 80%)", "GFLOP/s", "peak GiB"]
        found = load_result(name, results)
        body = [
            [
                problem["title"],
                f"{PHASES[row['phase']]}, batch {row['batch']}",
                row["contestant"],
                f"{row['parameters'] / 1e6:.1f} M",
                f"{row['images_per_second']:,.1f}",
                f"{row['times_as_fast']['median']:.2f} ({row['times_as_fast']['low']:.2f} to "
                f"{row['times_as_fast']['high']:.2f})",
                f"{row['gflops']:,.0f} ({row['share_of_limit']:.0%} of the limit)",
                f"{row['peak_gib']:.1f}",
            ]
            for problem in (found["problems"] if found else [])
            for row in problem["rows"]
        ]
        return or_not_run(head, body)

    return rows


def drawing(name: str) -> Callable[[Path], Rows]:
    """What images cost from start to end with each library's default."""

    def rows(results: Path) -> Rows:
        head = ["network", "images", "20 steps of DPM-Solver++ here", "1,000 steps of DDPMPipeline", "times sooner"]
        found = load_result(name, results)
        body = [
            [
                problem["title"],
                str(problem["drawing"]["images"]),
                f"{problem['drawing']['ours']:.2f} s",
                f"{problem['drawing']['reference']:.0f} s",
                f"{problem['drawing']['times_as_fast']:.0f}",
            ]
            for problem in (found["problems"] if found else [])
        ]
        return or_not_run(head, body)

    return rows


def variants(results: Path) -> Rows:
    """Other ways to run the small network: images a second in both phases, and times the usual way's."""
    found = load_result("speed_variants", results)
    body: dict[str, list[str]] = {}
    for row in found["rows"] if found else []:
        ratio = row["times_as_fast"]
        cell = f"{row['images_per_second']:.0f}, × {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
        body.setdefault(row["variant"], [row["variant"]]).append(cell)
    return or_not_run(["the small network on the processor", *PHASES.values()], list(body.values()))


def time_to_quality(results: Path) -> Rows:
    """What each recipe came to in the same time."""
    head = ["recipe", "parameters", "batch", "images seen", "seconds", "FID", "distance (built-in)"]
    found = load_result("time_to_quality", results)
    body = []
    for row in found["rows"] if found else []:
        training = row["training"]
        cells = [row["contestant"], f"{training['parameters'] / 1e6:.2f} M", str(training["batch_size"])]
        cells += [f"{training['images']:,}", f"{training['seconds']:.0f}"]
        body.append([*cells, f"{row['fid']:.1f}" if "fid" in row else "–", f"{row['frechet_distance']:.2f}"])
    return or_not_run(head, body)


def ablations(course: str) -> Callable[[Path], Rows]:
    """Every change of the recipe: the distance, and how that compares with the recipe's own."""

    def rows(results: Path) -> Rows:
        head = ["changed", "images seen", "distance (built-in)", "times the recipe's", "misplaced levels"]
        found = load_result(f"ablations_{course}", results)
        body = []
        for row in found["rows"] if found else []:
            ratio = row["frechet_distance"]["mean"] / found["rows"][0]["frechet_distance"]["mean"]
            distance, levels = spread(row["frechet_distance"], 2), spread(row["levels"], 2)
            body.append([row["variant"], f"{row['images']:,}", distance, f"{ratio:.2f}", levels])
        return or_not_run(head, body)

    return rows


def usual_sampler(results: Path) -> Rows:
    """FID of both forms of DPM-Solver++ on two models."""
    found = load_result("usual_sampler", results)
    body = [
        [row["title"], f"{row['steps']} × {row['sampler']}, {row['spacing']}", f"{row['n']:,}", f"{row['value']:.2f}"]
        for row in (found["rows"] if found else [])
    ]
    return or_not_run(["model", "drawn with", "n", "FID"], body)


def few_steps(name: str) -> Callable[[Path], Rows]:
    """Figure of every sampler and spacing at each number of network evaluations; in bold, as good as the many steps."""

    def rows(results: Path) -> Rows:
        found = load_result(f"few_steps_{name}", results)
        if found is None:
            return [["sampler", "spacing", "network evaluations"], [NOT_RUN] * 3]
        ancestral = found["ancestral"]
        head = ["sampler", "spacing", *map(str, found["budgets"]), f"{ancestral['steps']:,}"]
        body = [
            [row["sampler"], row["spacing"], *(_marked(value, ancestral) for value in row["values"]), "–"]
            for row in found["rows"]
        ]
        body[0][-1] = f"{ancestral['value']:.3g}"
        return [head, *body]

    return rows


def _marked(value: float, ancestral: dict[str, Any]) -> str:
    return f"**{value:.3g}**" if value <= ancestral["value"] else f"{value:.3g}"


SPEED_TABLES: dict[str, Callable[[Path], Rows]] = {
    "speed_cpu": speed("speed_cpu"),
    "speed_gpu": speed("speed_gpu"),
    "drawing_cpu": drawing("speed_cpu"),
    "drawing_gpu": drawing("speed_gpu"),
    "speed_variants": variants,
    "time_to_quality": time_to_quality,
    "ablations_short": ablations("short"),
    "ablations_longer": ablations("longer"),
    "usual_sampler": usual_sampler,
    "few_steps_digits": few_steps("digits"),
    "few_steps_cifar10": few_steps("cifar10"),
}

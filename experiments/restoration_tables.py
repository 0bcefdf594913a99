"""The tables of docs/restoration.md and docs/editing.md."""

import statistics
from collections.abc import Callable
from pathlib import Path

from experiments.record import load_result
from experiments.speed_tables import NOT_RUN, Rows, or_not_run


def restoration(name: str) -> Callable[[Path], Rows]:
    """PSNR and SSIM of each task, a column a method; the best PSNR of a row stands out."""

    def rows(results: Path) -> Rows:
        found = load_result(f"restoration_{name}", results)
        if found is None:
            return [["task", "PSNR (dB) / SSIM"], [NOT_RUN, NOT_RUN]]
        methods = [key for key, value in found["rows"][0].items() if isinstance(value, dict)]
        body = []
        for row in found["rows"]:
            highest = max(row[method]["psnr"] for method in methods)
            marks = ["**" if row[method]["psnr"] == highest else "" for method in methods]
            cells = [
                f"{mark}{row[method]['psnr']:.2f}{mark} / {row[method]['ssim']:.3f}"
                for method, mark in zip(methods, marks, strict=True)
            ]
            body.append([row["task"], *cells])
        return [[f"PSNR (dB) / SSIM, {found['images']} images", *methods], *body]

    return rows


def speed(results: Path) -> Rows:
    """Our DDRM beside deepinv's: seconds (the median), how many times as fast, and what comes out."""
    head = ["", "images", "evaluations an image", "seconds", "times as fast (lowest to highest)", "PSNR (dB)"]
    found = load_result("restoration_speed", results)
    if found is None:
        return [head, [NOT_RUN] * len(head)]
    ratio = found["times_as_fast"]
    gains = {"ours": f"{ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})", "deepinv": "1"}
    body = [
        [
            f"deepinv {found['deepinv']}" if name == "deepinv" else name,
            str(found["images"]),
            str(found["evaluations"]),
            f"{statistics.median(found['seconds'][name]):.2f}",
            gain,
            f"{found['psnr'][name]:.2f}",
        ]
        for name, gain in gains.items()
    ]
    return [head, *body]


def posteriors(results: Path) -> Rows:
    """Bias and spread of each method's samples about the exact Gaussian posterior, a row a problem and σ."""
    found = load_result("restoration_gaussian", results)
    if found is None:
        return [["problem", "σ", "bias / spread"], [NOT_RUN] * 3]
    methods = list(dict.fromkeys(row["method"] for row in found["rows"]))
    cells: dict[tuple[str, float], dict[str, str]] = {}
    for row in found["rows"]:
        key = row["problem"], row["sigma"]
        cells.setdefault(key, {})[row["method"]] = f"{row['bias']:.2f} / {row['spread']:.2f}"
    body = [[problem, f"{sigma:g}", *(row.get(m, "–") for m in methods)] for (problem, sigma), row in cells.items()]
    return [["bias / spread", "σ", *methods], *body]


def round_trips(name: str) -> Callable[[Path], Rows]:
    """Error of an inversion and the way back, of 255."""

    def rows(results: Path) -> Rows:
        head = ["method", "network evaluations", "error (of 255)", "largest (of 255)", "PSNR (dB)"]
        found = load_result(f"editing_{name}", results)
        body = [
            [
                row["method"],
                str(row["evaluations"]),
                f"{row['error']:.2f}",
                f"{row['largest']:.1f}",
                f"{row['psnr']:.1f}",
            ]
            for row in (found["round_trips"] if found else [])
        ]
        return or_not_run(head, body)

    return rows


def curve(name: str) -> Callable[[Path], Rows]:
    """SDEdit: what each strength keeps, and how the model takes the outcome."""

    def rows(results: Path) -> Rows:
        head = ["strength", "PSNR (dB)", "SSIM", "surprise"]
        found = load_result(f"editing_{name}", results)
        body = [
            [
                f"{row['strength']:g}" if row["strength"] else "0 (the originals)",
                "–" if row["psnr"] is None else f"{row['psnr']:.2f}",
                f"{row['ssim']:.3f}",
                f"{row['surprise']:.4f}",
            ]
            for row in (found["curve"] if found else [])
        ]
        return or_not_run(head, body)

    return rows


RESTORATION_TABLES: dict[str, Callable[[Path], Rows]] = {
    "restoration_digits": restoration("digits"),
    "restoration_cifar10": restoration("cifar10"),
    "restoration_flowers64": restoration("flowers64"),
    "restoration_gaussian": posteriors,
    "restoration_speed": speed,
    "round_trips_digits": round_trips("digits"),
    "sdedit_digits": curve("digits"),
}

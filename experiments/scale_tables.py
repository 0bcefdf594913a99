"""The tables of docs/scale.md, made from experiments/results/scale.json."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.record import load_result
from experiments.speed_tables import Rows, or_not_run


def scale_table(head: list[str], body: Callable[[dict[str, Any]], Rows]) -> Callable[[Path], Rows]:
    """A table of `scale.json`; one row says so where that was not measured."""

    def rows(results: Path) -> Rows:
        found = load_result("scale", results)
        return or_not_run(head, body(found) if found else [])

    return rows


def training(found: dict[str, Any]) -> Rows:
    """Images a second by processes and threads, and beside one process of one thread."""
    alone = found["training"][0]["images_per_second"]
    return [
        [
            str(row["processes"]),
            str(row["threads"]),
            f"{row['images_per_second']:.0f}",
            f"{row['images_per_second'] / alone:.2f}",
        ]
        for row in found["training"]
    ]


def sized(row: dict[str, Any]) -> list[str]:
    """A network by its preset, its parameters, and the bytes that are moved for it."""
    return [row["preset"], f"{row['parameters']:,}", megabytes(row["bytes"])]


def reductions(found: dict[str, Any]) -> Rows:
    """The all-reduce between two processes, where each sends as many bytes as the gradients have."""
    return [
        [*sized(row), f"{1e3 * row['seconds']:.0f}", f"{row['bytes'] / row['seconds'] / 1e9:.2f}"]
        for row in found["all_reduce"]
    ]


def checkpoints(found: dict[str, Any]) -> Rows:
    """What a checkpoint takes on the disk and in time."""
    return [[*sized(row), f"{row['write_seconds']:.2f}", f"{row['read_seconds']:.2f}"] for row in found["checkpoints"]]


def decoding(found: dict[str, Any]) -> Rows:
    """Photographs a second, and the bytes that are read for them."""
    size = found["decoding"]["kilobytes"]
    return [
        [row["source"], f"{row['images_per_second']:.0f}", f"{row['images_per_second'] * size / 1e3:.1f}"]
        for row in found["decoding"]["rows"]
    ]


def about(found: dict[str, Any]) -> Rows:
    """Where, by what and on what it was measured."""
    photographs = found["decoding"]
    images = photographs["rows"][0]["images"]
    size = f"{images:,} of {photographs['side']}×{photographs['side']}, {photographs['kilobytes']:.1f} kB each"
    return [[f"`{found['command']}`", found["machine"], f"{found['seconds']} s", size]]


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}"


SCALE_TABLES: dict[str, Callable[[Path], Rows]] = {
    "scale_about": scale_table(["command", "machine", "took", "JPEG photographs"], about),
    "scale_training": scale_table(["processes", "threads of each", "images/s", "times one of one"], training),
    "scale_reduction": scale_table(["preset", "parameters", "gradients (MB)", "ms", "GB/s"], reductions),
    "scale_checkpoints": scale_table(["preset", "parameters", "checkpoint (MB)", "write (s)", "read (s)"], checkpoints),
    "scale_decoding": scale_table(["source", "images/s", "MB/s"], decoding),
}

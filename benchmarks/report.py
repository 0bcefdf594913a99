"""The figures as a table to print, JSON to keep, and a picture."""

import argparse
from pathlib import Path
from typing import Any

from experiments.record import PICTURES, RESULTS, save_result

DOING = {"train": "training step", "sample": "sampling step"}


def table(result: dict[str, Any]) -> str:
    """Markdown: one row a contestant and phase."""
    limits = result["limits"]
    lines = [
        f"{result['title']}; limits: convolution {limits['convolution_bf16']:.0f} GFLOP/s in bf16, "
        f"{limits['convolution_fp32']:.0f} in fp32; matrix product {limits['matrix_bf16']:.0f} and "
        f"{limits['matrix_fp32']:.0f}; copy {limits['copy_gb']:.1f} GB/s",
        "",
        "| | | parameters | images/s | GFLOP/s | of the limit | times as fast (middle 80%) | peak GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        ratio = row["times_as_fast"]
        lines.append(
            f"| {DOING[row['phase']]}, batch {row['batch']} | {row['contestant']} | {row['parameters']:,} "
            f"| {row['images_per_second']:.1f} | {row['gflops']:.0f} | {row['share_of_limit']:.0%} "
            f"| {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}) | {row['peak_gib']:.1f} |"
        )
    drawing = result["drawing"]
    lines += [
        "",
        f"{drawing['images']} images: {drawing['ours']:.2f} s by 20 steps of DPM-Solver++, against "
        f"{drawing['reference']:.0f} s for 1,000 steps of DDPMPipeline, {drawing['times_as_fast']:.0f} times sooner.",
    ]
    return "\n".join(lines)


def picture(results: list[dict[str, Any]], path: Path) -> None:
    """Bars: how many times as fast as Diffusers as documented, with the spread."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(results), 2, figsize=(10, 2.4 * len(results)), squeeze=False)
    for line, result in zip(axes, results, strict=True):
        for axis, phase in zip(line, DOING, strict=True):
            rows = [row for row in result["rows"] if row["phase"] == phase][::-1]
            ratios = [row["times_as_fast"] for row in rows]
            medians = [ratio["median"] for ratio in ratios]
            below = [ratio["median"] - ratio["low"] for ratio in ratios]
            above = [ratio["high"] - ratio["median"] for ratio in ratios]
            axis.barh([row["contestant"] for row in rows], medians, xerr=[below, above], capsize=3, color="#4878a8")
            axis.set_title(f"{result['title']}: {DOING[phase]}", fontsize=9)
            axis.tick_params(labelsize=8)
            axis.axvline(1, color="grey", linewidth=0.8)
        line[1].set_yticklabels([])
    for axis in axes[-1]:
        axis.set_xlabel("images a second, as a multiple of Diffusers as documented", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def refuse_published(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """A toy's figures do not go where those of docs/speed.md are."""
    if options.out == RESULTS or options.pictures == PICTURES:
        parser.error("a toy's figures are not for the documentation: give --out FOLDER and --pictures FOLDER")


def save(name: str, results: list[dict[str, Any]], machine: str, folder: Path, pictures: Path) -> None:
    """folder/NAME.json and pictures/NAME.png."""
    command = f"python -m benchmarks.{name.removeprefix('speed_')}"
    save_result(name, {"command": command, "machine": machine, "problems": results}, folder)
    pictures.mkdir(parents=True, exist_ok=True)
    picture(results, pictures / f"{name}.png")

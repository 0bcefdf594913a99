"""The tables of docs/evaluation.md."""

from collections.abc import Callable
from pathlib import Path

from experiments.record import load_result
from experiments.speed_tables import NOT_RUN, Rows, or_not_run


def bits_per_dim(results: Path) -> Rows:
    """The bound on the likelihood of test images, a row a model."""
    head = ["model", "images", "timesteps each", "bits/dim (bound)", "rate", "distortion", "RMSE (0..255)"]
    found = load_result("bits_per_dim", results)
    body = [
        [
            row["model"],
            f"{row['images']:,}",
            str(row["timesteps_per_image"]),
            f"{row['bits_per_dim']:.3f} ± {row['standard_error']:.3f}",
            f"{row['rate_bits']:.3f}",
            f"{row['distortion_bits']:.3f}",
            f"{row['rmse']:.2f}",
        ]
        for row in (found["rows"] if found else [])
    ]
    return or_not_run(head, body)


def features_speed(results: Path) -> Rows:
    """Images a second through each engine of the standard features."""
    head = ["engine", "images/s", "machine"]
    found = load_result("features_speed", results)
    if found is None:
        return [head, [NOT_RUN] * len(head)]
    return [head, *([name, f"{speed:.1f}", found["machine"]] for name, speed in found["images_per_second"].items())]


def real_against_real(results: Path) -> Rows:
    """FID of real images, the floor under every figure."""
    head = ["", "n", "FID"]
    found = load_result("real_against_real", results)
    titles = (
        "the same images by our pipeline and by the bare network",
        "CIFAR-10's test images against its training images",
    )
    if found is None:
        return [head, *([title, NOT_RUN, NOT_RUN] for title in titles)]
    twice, real = found["first_images_twice"], found["test_against_train"]
    cells = [
        [f"{twice['n']:,}", f"{twice['fid']:.1e}"],
        [f"{real['settings']['n']:,}", f"{real['figures']['fid']['value']:.2f}"],
    ]
    return [head, *([title, *row] for title, row in zip(titles, cells, strict=True))]


EVALUATION_TABLES: dict[str, Callable[[Path], Rows]] = {
    "bits_per_dim": bits_per_dim,
    "features_speed": features_speed,
    "real_against_real": real_against_real,
}

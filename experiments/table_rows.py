"""Rows of the tables in the docs, each made from the content of a JSON file in experiments/results."""

import statistics
from collections import Counter
from typing import Any

NOTHING = "–"
PHASES = {"train": "training step", "sample": "sampling step"}
MOVED = {"experiments.headline": "experiments.quality.headline", "experiments.scale": "experiments.speed.scale"}

Result = dict[str, Any]  # content of a JSON file
Rows = list[list[str]]


def mean_and_deviation(figure: dict[str, float | None], digits: int) -> str:
    """Mean ± standard deviation; only the mean if there is one value."""
    error = "" if figure["std"] is None else f" ± {figure['std']:.{digits}f}"
    return f"{figure['mean']:.{digits}f}{error}"


def ratio(figure: dict[str, float], low: str = "low", high: str = "high") -> str:
    """Median of a ratio, with its range."""
    return f"{figure['median']:.2f} ({figure[low]:.2f} to {figure[high]:.2f})"


def duration(seconds: float) -> str:
    """Minutes, or hours from two hours on."""
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{seconds / 3600:.1f} h"


def command_now(recorded: str) -> str:
    """Command of a result, with the present name of its module."""
    python, flag, module, *rest = recorded.split(" ")
    return " ".join([python, flag, MOVED.get(module, module), *rest])


# quality


def headline_columns(result: Result) -> dict[str, str]:
    """Cells of one model's row by their heads: its size, its training and its metrics."""
    training, standard, builtin = result["training"], result["standard"], result["builtin"]
    settings, others = standard["settings"], builtin["metrics"]
    (distance,) = standard["metrics"].values()
    columns = {
        "parameters": f"{training['parameters'] / 1e6:.1f} M",
        "images seen": f"{training['images']:,}",
        "training": duration(training["seconds"]),
        # results without a spacing are from a time when all spacing was even in t
        "sampled with": f"{settings['steps']} × {settings['sampler']}, {settings.get('spacing', 'trailing')}",
        "n": f"{settings['n']:,}",
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


def study(found: Result, data: str) -> Rows:
    """Figures of every kind of the study on one data set."""
    digits = {"frechet_distance": 2, "kid": 3, "precision": 2, "recall": 2, "levels": 2}
    return [
        [
            row["schedule"] or "none: one step of regression",
            {"epsilon": "ε"}.get(row["prediction"], row["prediction"]),
            str(row["seeds"]),
            *(mean_and_deviation(row[key], places) for key, places in digits.items()),
        ]
        for row in found["rows"]
        if row["data"] == data
    ]


def ablations(found: Result) -> Rows:
    """Every change of the recipe: its distance, absolute and relative to that of the recipe."""
    base = found["rows"][0]["frechet_distance"]["mean"]
    return [
        [
            row["variant"],
            f"{row['images']:,}",
            mean_and_deviation(row["frechet_distance"], 2),
            f"{row['frechet_distance']['mean'] / base:.2f}",
            mean_and_deviation(row["levels"], 2),
        ]
        for row in found["rows"]
    ]


def few_steps_head(found: Result) -> list[str]:
    """Head of `few_steps`, with the numbers of network evaluations."""
    return ["sampler", "spacing", *map(str, found["budgets"]), f"{found['ancestral']['steps']:,}"]


def few_steps(found: Result) -> Rows:
    """Every sampler and spacing at each number of evaluations; bold if as good as the many ancestral steps."""
    best = found["ancestral"]["value"]
    body: Rows = []
    for row in found["rows"]:
        values = [f"**{value:.3g}**" if value <= best else f"{value:.3g}" for value in row["values"]]
        body.append([row["sampler"], row["spacing"], *values, NOTHING if body else f"{best:.3g}"])
    return body


def usual_sampler(found: Result) -> Rows:
    """FID of both forms of DPM-Solver++ on two models."""
    return [
        [row["title"], f"{row['steps']} × {row['sampler']}, {row['spacing']}", f"{row['n']:,}", f"{row['value']:.2f}"]
        for row in found["rows"]
    ]


def time_to_quality(found: Result) -> Rows:
    """What each recipe reaches in the same time."""
    return [
        [
            row["contestant"],
            f"{row['training']['parameters'] / 1e6:.2f} M",
            str(row["training"]["batch_size"]),
            f"{row['training']['images']:,}",
            f"{row['training']['seconds']:.0f}",
            f"{row['fid']:.1f}" if "fid" in row else NOTHING,
            f"{row['frechet_distance']:.2f}",
        ]
        for row in found["rows"]
    ]


# evaluation


def likelihood(found: Result) -> list[str]:
    """Bits/dim with its standard error, rate, distortion and RMSE."""
    bits = f"{found['bits_per_dim']:.3f} ± {found['standard_error']:.3f}"
    return [bits, f"{found['rate_bits']:.3f}", f"{found['distortion_bits']:.3f}", f"{found['rmse']:.2f}"]


def bits_per_dim(found: Result) -> Rows:
    """Likelihood of test images, a row per model."""
    return [
        [row["model"], f"{row['images']:,}", str(row["timesteps_per_image"]), *likelihood(row)] for row in found["rows"]
    ]


def paper_likelihood(found: Result) -> list[str]:
    """Likelihood of held-out images in the results of the paper's figures."""
    return [f"{found['likelihood']['images']:,}", *likelihood(found["likelihood"])]


def digits_read(found: Result) -> list[str]:
    """How often a classifier reads the digit that a sample was conditioned on."""
    fractions = [f"{found['read_as_asked_by_guidance'][key]:.1%}" for key in ("1.0", "1.5")]
    return [f"{found['num']:,}", *fractions, f"{found['reader_on_mnist_test']:.1%}"]


def features_speed(found: Result) -> Rows:
    """Images per second of each engine of the standard features."""
    return [[name, f"{speed:.1f}", found["machine"]] for name, speed in found["images_per_second"].items()]


def real_against_real(found: Result) -> Rows:
    """FID of real images, the lower limit of every other."""
    twice, real = found["first_images_twice"], found["test_against_train"]
    fid = f"{real['metrics']['fid']['value']:.2f}"
    return [
        ["the same images by our pipeline and by the bare network", f"{twice['n']:,}", f"{twice['fid']:.1e}"],
        ["CIFAR-10's test images against its training images", f"{real['settings']['n']:,}", fid],
    ]


# speed and scale


def fastest(limits: dict[str, float]) -> tuple[str, float]:
    """Return the number format of the fastest convolution that was measured, and its GFLOP/s: the limit."""
    rates = {key.removeprefix("convolution_"): rate for key, rate in limits.items() if key.startswith("convolution_")}
    name = max(rates, key=lambda each: rates[each])
    return name, rates[name]


def speed(found: Result) -> Rows:
    """Images per second of every contestant, and its speed relative to Diffusers as documented."""
    return [
        [
            problem["title"],
            f"{PHASES[row['phase']]}, batch {row['batch']}",
            row["contestant"],
            f"{row['parameters'] / 1e6:.1f} M",
            f"{row['images_per_second']:,.1f}",
            ratio(row["times_as_fast"]),
            f"{row['gflops']:,.0f} ({row['share_of_limit']:.0%} of the {fastest(problem['limits'])[0]} limit)",
            f"{row['peak_gib']:.1f}",
        ]
        for problem in found["problems"]
        for row in problem["rows"]
    ]


def drawing(found: Result) -> Rows:
    """Seconds to sample from start to end with each library's default."""
    return [
        [
            problem["title"],
            str(problem["drawing"]["images"]),
            f"{problem['drawing']['ours']:.2f} s",
            f"{problem['drawing']['reference']:.0f} s",
            f"{problem['drawing']['times_as_fast']:.0f}",
        ]
        for problem in found["problems"]
    ]


def variants(found: Result) -> Rows:
    """Other ways to run the small network: images per second in both phases, absolute and relative to the usual way."""
    body: dict[str, list[str]] = {}
    for row in found["rows"]:
        cell = f"{row['images_per_second']:.0f}, × {ratio(row['times_as_fast'])}"
        body.setdefault(row["variant"], [row["variant"]]).append(cell)
    return list(body.values())


def passes(found: Result) -> Rows:
    """Passes over the pixels of a residual block: needed, in the code that is compiled, and with PyTorch's settings."""
    return [
        [PHASES[row["phase"]], *(f"{row[key]:.1f}" for key in ("needed", "ours", "default"))] for row in found["rows"]
    ]


def scale_about(found: Result) -> Rows:
    """How, where and on which photographs the scale was measured."""
    decoding = found["decoding"]
    images, side = decoding["rows"][0]["images"], decoding["side"]
    photographs = f"{images:,} of {side}×{side}, {decoding['kilobytes']:.1f} kB each"
    return [[f"`{command_now(found['command'])}`", found["machine"], f"{found['seconds']} s", photographs]]


def scale_training(found: Result) -> Rows:
    """Images per second by processes and threads, absolute and relative to one process with one thread."""
    rows, alone = found["training"], found["training"][0]["images_per_second"]
    speeds = [row["images_per_second"] for row in rows]
    return [
        [str(row["processes"]), str(row["threads"]), f"{speed:.0f}", f"{speed / alone:.2f}"]
        for row, speed in zip(rows, speeds, strict=True)
    ]


def preset_size(row: Result) -> list[str]:
    """Preset, its parameters, and the megabytes that are moved for it."""
    return [row["preset"], f"{row['parameters']:,}", f"{row['bytes'] / 1e6:,.1f}"]


def scale_reduction(found: Result) -> Rows:
    """All-reduce between two processes, each of which sends as many bytes as the gradients have."""
    return [
        [*preset_size(row), f"{1e3 * row['seconds']:.0f}", f"{row['bytes'] / row['seconds'] / 1e9:.2f}"]
        for row in found["all_reduce"]
    ]


def scale_checkpoints(found: Result) -> Rows:
    """Size of a checkpoint, and the time to write and to read it."""
    return [
        [*preset_size(row), f"{row['write_seconds']:.2f}", f"{row['read_seconds']:.2f}"] for row in found["checkpoints"]
    ]


def scale_decoding(found: Result) -> Rows:
    """Photographs per second, and the megabytes that are read for them."""
    size = found["decoding"]["kilobytes"] / 1e3
    rows = [(row["source"], row["images_per_second"]) for row in found["decoding"]["rows"]]
    return [[source, f"{speed:.0f}", f"{speed * size:.1f}"] for source, speed in rows]


# restoration and editing


def restoration_methods(found: Result) -> list[str]:
    """Methods of a restoration result, which are the columns of its table."""
    return [key for key, value in found["rows"][0].items() if isinstance(value, dict)]


def restoration_head(found: Result) -> list[str]:
    """Head of `restoration`."""
    return [f"PSNR (dB) / SSIM, {found['images']} images", *restoration_methods(found)]


def restoration(found: Result) -> Rows:
    """PSNR and SSIM of each task, a column per method; the best PSNR of a row is bold."""
    body = []
    for row in found["rows"]:
        figures = [row[method] for method in restoration_methods(found)]
        best = max(figure["psnr"] for figure in figures)
        marks = ["**" if figure["psnr"] == best else "" for figure in figures]
        cells = zip(marks, figures, strict=True)
        body.append([row["task"], *(f"{m}{each['psnr']:.2f}{m} / {each['ssim']:.3f}" for m, each in cells)])
    return body


def posteriors_head(found: Result) -> list[str]:
    """Head of `posteriors`, with the methods."""
    return ["bias / spread", "σ", *dict.fromkeys(row["method"] for row in found["rows"])]


def posteriors(found: Result) -> Rows:
    """Bias and spread of each method's samples about the exact Gaussian posterior, a row per problem and σ."""
    cells: dict[tuple[str, float], dict[str, str]] = {}
    for row in found["rows"]:
        key = row["problem"], row["sigma"]
        cells.setdefault(key, {})[row["method"]] = f"{row['bias']:.2f} / {row['spread']:.2f}"
    methods = posteriors_head(found)[2:]
    return [[key[0], f"{key[1]:g}", *(row.get(method, NOTHING) for method in methods)] for key, row in cells.items()]


def restoration_speed(found: Result) -> Rows:
    """Our DDRM and deepinv's: median seconds, relative speed and PSNR."""
    shown = {"ours": ("ours", ratio(found["times_as_fast"], "lowest", "highest"))}
    shown["deepinv"] = (f"deepinv {found['deepinv']}", "1")
    return [
        [
            title,
            str(found["images"]),
            str(found["evaluations"]),
            f"{statistics.median(found['seconds'][name]):.2f}",
            relative,
            f"{found['psnr'][name]:.2f}",
        ]
        for name, (title, relative) in shown.items()
    ]


def round_trips(found: Result) -> Rows:
    """Error of inverting an image and sampling it again."""
    return [
        [row["method"], str(row["evaluations"]), f"{row['error']:.2f}", f"{row['largest']:.1f}", f"{row['psnr']:.1f}"]
        for row in found["round_trips"]
    ]


def sdedit(found: Result) -> Rows:
    """Fidelity and realism of SDEdit at each strength."""
    return [
        [
            f"{row['strength']:g}" if row["strength"] else "0 (the originals)",
            NOTHING if row["psnr"] is None else f"{row['psnr']:.2f}",
            f"{row['ssim']:.3f}",
            f"{row['surprise']:.4f}",
        ]
        for row in found["curve"]
    ]


# reliability


def torture(found: Result) -> Rows:
    """Disturbances of the crash campaign, how often each happened, and what was lost."""
    rows = [[name, str(count)] for name, count in found["counts"].items()]
    rows += [["checkpoints, weights, pictures or log lines lost", str(found["lost"])]]
    return [*rows, [f"took, on {found['machine']}", duration(found["seconds"])]]


def mutants(found: Result) -> Rows:
    """Planted errors of each room, and how many of them its tests notice."""
    rooms = {row["room"]: [other for other in found["files"] if other["room"] == row["room"]] for row in found["files"]}
    counts = {
        room: [len(rows), *(sum(row[key] for row in rows) for key in ("planted", "noticed"))]
        for room, rows in rooms.items()
    }
    counts["all"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    return [
        [room, f"{files}", f"{planted:,}", f"{noticed:,}", f"{noticed / planted:.1%}"]
        for room, (files, planted, noticed) in counts.items()
    ]


def mutants_equivalent(found: Result) -> Rows:
    """Why planted errors were not counted, the most frequent reason first."""
    reasons = Counter(mutant["why"] for row in found["files"] for mutant in row["equivalent"])
    return [[why, str(count)] for why, count in reasons.most_common()]


def mutants_left(found: Result) -> Rows:
    """The planted errors that no test notices."""
    rows = [
        [f"`{row['file'].removeprefix('src/ddpm/')}:{mutant['line']}`", _code(mutant["was"]), _code(mutant["became"])]
        for row in found["files"]
        for mutant in row["survivors"]
    ]
    return rows or [["nothing", "", ""]]


def fuzz(found: Result) -> Rows:
    """Inputs of each target of the fuzzing campaign, the branches that they reached, and the failures."""
    rows = [
        [name, f"{row['inputs']:,}", f"{row['branches']:,}", str(row["findings"])]
        for name, row in found["targets"].items()
    ]
    total, failures = (sum(row[key] for row in found["targets"].values()) for key in ("inputs", "findings"))
    return [*rows, ["all", f"{total:,}", "", str(failures)]]


def _code(text: str) -> str:
    return f"`{text.replace('|', chr(92) + '|')}`"


def rounding(found: Result) -> Rows:
    """Largest differences between ways to compute the same thing."""
    return [
        [
            row["way"],
            f"{row['call']:.1e}" if row["call"] else "0",
            f"{row['images_of_255']:.2g}",
            f"{row['pixels_changed']:.2%}",
        ]
        for row in found["rows"]
    ]


def serving(found: Result) -> Rows:
    """Answers and the server's memory, a row per round of requests."""
    keys = ("answered", "right", "before", "peak", "after")
    return [
        [str(number), str(found["requests"]), *(f"{row[key]:,}" for key in keys)]
        for number, row in enumerate(found["rounds"], start=1)
    ]


def distillation(found: Result) -> Rows:
    """Figures of the teacher and of each student."""
    return [
        [
            row["title"],
            f"{row['n']:,}",
            f"{row['fid']:.1f}" if "fid" in row else NOTHING,
            f"{row['metrics']['frechet_distance']:.2f}",
            f"{row['metrics']['precision']:.2f} / {row['metrics']['recall']:.2f}",
            f"{row['metrics']['levels']:.2f}",
            " / ".join(f"{row['metrics'][f'copies_{by}']:.1%}" for by in ("pixels", "features"))
            if "copies_pixels" in row["metrics"]
            else NOTHING,
            f"{row['read_as_asked']:.1%}" if "read_as_asked" in row else NOTHING,
        ]
        for row in found["rows"]
    ]


def restoration_students(found: Result) -> Rows:
    """PSNR of every method with the student and with its teacher."""
    return [
        [
            row["task"],
            f"{row['pseudo-inverse']['psnr']:.1f}",
            method,
            *(f"{cells[who]['psnr']:.1f}" for who in ("student", "teacher")),
        ]
        for row in found["rows"]
        for method, cells in row["methods"].items()
    ]

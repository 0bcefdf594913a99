"""Show where the time of a training step goes.

    python -m experiments.speed.profile cifar10_fast [--steps 20]

On a GPU: the kernels that take most time, and the fraction of the time in which no kernel runs. On a CPU: the operators
that take most time. Writes profile_PRESET.json.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ddpm.training import load_config
from ddpm.training.compute import reproducible_kernels
from ddpm.training.trainer import Trainer
from experiments.lib import about, add_folders, command_line, launch, save_result

WARM_UP, TOP = 5, 15  # steps before the profile; rows of the table


def profiled(preset: str, steps: int) -> dict[str, Any]:
    """Profile some steps of a preset; return the content of the JSON file."""
    trainer = Trainer(load_config(preset, {"training.loggers": []}), Path())
    trainer.network.train()
    on_gpu = trainer.device.type == "cuda"
    with reproducible_kernels(trainer.device):
        batches = trainer.batches.steps(0)
        for _ in range(WARM_UP):
            trainer.step(next(batches)).read()
        with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as recording:
            pending = [trainer.step(next(batches)) for _ in range(steps)]
            pending[-1].read()
        batches.close()
    device = DeviceType.CUDA if on_gpu else DeviceType.CPU
    spans = [(e.time_range.start, e.time_range.end) for e in recording.events() if e.device_type == device]
    cost = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows = sorted(recording.key_averages(), key=lambda row: getattr(row, cost), reverse=True)
    total = sum(getattr(row, cost) for row in rows)
    top = [
        {"name": row.key[:80], "calls": row.count / steps, "fraction": round(getattr(row, cost) / total, 4)}
        for row in rows[:TOP]
    ]
    return {"preset": preset, "steps": steps, "engine": str(trainer.plan), **busy(spans, steps), "top": top}


def busy(spans: Iterable[tuple[float, float]], steps: int) -> dict[str, float]:
    """Return the milliseconds per step from first start to last end, and the fraction in which nothing runs.

    Args:
        spans: start and end of each event, in microseconds; they may overlap.
    """
    ordered = sorted(spans)
    begin, end, idle = ordered[0][0], ordered[0][1], 0.0
    for start, stop in ordered[1:]:
        idle += max(0.0, start - end)
        end = max(end, stop)
    return {"milliseconds_per_step": round((end - begin) / steps / 1e3, 3), "idle": round(idle / (end - begin), 4)}


def main() -> None:
    """Parse the command line, profile, and print the table."""
    parser = command_line(__doc__)
    parser.add_argument("preset")
    parser.add_argument("--steps", type=int, default=20)
    add_folders(parser)
    options = parser.parse_args()
    found = profiled(options.preset, options.steps)
    save_result(f"profile_{Path(options.preset).stem}", {**about(), **found}, options.out)
    print(f"{found['milliseconds_per_step']} ms per step, nothing runs in {found['idle']:.1%} of the time")
    for row in found["top"]:
        print(f"{row['fraction']:6.1%}  {row['calls']:8.1f} calls per step  {row['name']}")


if __name__ == "__main__":
    launch(main)

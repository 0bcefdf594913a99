"""Feed hostile files to every reader: `python tests/campaigns/fuzz.py [TARGET ...] [--seconds 60] [--keep FOLDER]`.

atheris (libFuzzer for Python) mutates valid files under the guidance of the code that they reach. An input fails when
anything but the package's own errors comes out, when it takes over 20 seconds, or when the process grows over 3 GiB; it
is then kept, and the target named. Each target is a process of its own; the figures printed are libFuzzer's.

FOLDER keeps the failing inputs, the logs, the inputs that reached new code (corpus/TARGET), and the count of all that
was ever tried (totals.json). The same command goes on from there, so a campaign can take several nights.
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TARGETS = [sys.executable, str(Path(__file__).resolve().parent / "fuzz_targets.py")]
SECONDS_AN_INPUT, MEGABYTES = 20, 3072


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", help="default: all")
    parser.add_argument("--seconds", type=int, default=60, help="a target")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="what goes on the next time")
    arguments = parser.parse_args()
    arguments.keep = arguments.keep.resolve()
    known = subprocess.run([*TARGETS, "list"], capture_output=True, text=True, check=True).stdout.split()
    if unknown := set(arguments.targets) - set(known):
        parser.error(f"no target {min(unknown)}: there are {', '.join(known)}")
    arguments.keep.mkdir(parents=True, exist_ok=True)
    store = arguments.keep / "totals.json"
    totals = json.loads(store.read_text()) if store.exists() else {}
    failed = 0
    print(f"{'target':<12}{'inputs':>12}{'in all':>12}{'branches':>10}{'peak MiB':>10}  result", flush=True)
    for name in arguments.targets or known:
        with tempfile.TemporaryDirectory() as scratch:
            inputs, branches, peak, finding = fuzz(name, arguments.seconds, Path(scratch), arguments.keep)
        failed += finding is not None
        before = totals.get(name, {"inputs": 0, "branches": 0, "findings": 0})
        total, reached = before["inputs"] + inputs, max(before["branches"], branches)
        totals[name] = {"inputs": total, "branches": reached, "findings": before["findings"] + (finding is not None)}
        store.write_text(json.dumps(totals, indent=2) + "\n")
        figures = f"{inputs:>12,}{total:>12,}{branches:>10,}{peak:>10,}"
        print(f"{name:<12}{figures}  {finding or 'nothing found'}", flush=True)
    print(f"{sum(total['inputs'] for total in totals.values()):,} inputs in all")
    return 1 if failed else 0


def fuzz(name: str, seconds: int, scratch: Path, keep: Path) -> tuple[int, int, int, str | None]:
    """Run one target: new inputs tried, branches reached, peak memory in MiB, and what went wrong, if anything did."""
    corpus = keep / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    command = [*TARGETS, name, str(corpus), f"-max_total_time={seconds}"]
    command += [f"-timeout={SECONDS_AN_INPUT}", f"-rss_limit_mb={MEGABYTES}", f"-artifact_prefix={keep}/{name}-"]
    command += ["-print_final_stats=1", "-max_len=65536", "-verbosity=1"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, cwd=scratch)
    log = done.stdout + done.stderr
    (keep / f"{name}.log").write_text(log[-100_000:])

    def last(pattern: str) -> int:
        found = re.findall(pattern, log)
        return int(found[-1]) if found else 0

    finding = None
    if done.returncode != 0:
        errors = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception|Stopped|timeout|out-of-memory)\b.*$", log, re.MULTILINE)
        finding = f"FAILED: {errors[-1][:150] if errors else f'exit code {done.returncode}'} (see {keep}/{name}.log)"
    executed = last(r"stat::number_of_executed_units:\s+(\d+)") or last(r"#(\d+)\s")
    kept = last(r"#(\d+)\s+INITED")  # the seeds and what earlier runs kept, which were counted then
    return executed - kept, last(r"cov: (\d+)"), last(r"stat::peak_rss_mb:\s+(\d+)") or last(r"rss: (\d+)Mb"), finding


if __name__ == "__main__":
    if importlib.util.find_spec("atheris") is None:
        sys.exit("fuzzing needs atheris: pip install atheris")
    sys.exit(main())

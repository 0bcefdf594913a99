"""Plant one-line errors in the source and count how many the mirrored tests notice.

    python tools/mutants.py [ROOM ...] [--sample 40] [--seed 0] [--seconds 40] [--out mutants.json] [--again]

A mutant changes one expression: an operator, a comparison, a number, a truth value, the order of two arguments, a
keyword argument left out, a negation, a bound of a slice, a term, factor, root or limit left out, a variable taken for
its sibling (`alpha` for `alpha_prev`), a call or an update not made. `--sample` takes that many of each file, chosen by
the seed.

The tests of a room are collected once, by a process that forks for every mutant. Where the mutant changes a function,
the fork gives that function its new code and runs the tests that enter the statement, the quickest first. What is
changed elsewhere (a default, a table, a field) needs the package imported again, and all tests of the room: first those
in files named after the changed one, then those that enter it. Tests stop at the first failure, or when they take
longer than `--seconds` in all. Which test enters what, and how long it takes, is recorded before, and kept in .mutants/
until the source or the test changes. Tests that start other processes are left out, because these do not have the
mutant.

A mutant that no test notices is a survivor: write a test for it, or explain in mutants_equivalent.json why it changes
nothing. A report at `--out` is continued: its files are not judged again, unless `--again` plants its survivors once
more.
"""

import argparse
import contextlib
import gc
import hashlib
import importlib
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest
from mutants_changes import Mutant, mutants

ROOT = Path(__file__).parent.parent
# a mutant that computes so many times as long as the source itself is noticed, and one that waits so many times that
PATIENCE, SLEEP = 5, 4
TRACED = 3_000_000  # calls and lines of a test or fixture that are recorded; the rest goes on at full speed
OPTIONS = ["-qq", "-s", "-p", "no:cacheprovider", "--no-header", "--disable-warnings", "-o", "addopts="]
OPTIONS += ["-k", "not processes and not torture and not kill and not signals and not telemetry"]  # start others
ROOMS = {  # files to change, and the tests that mirror them
    "diffusion": (["diffusion"], ["tests/diffusion", "tests/test_wiring.py", "tests/test_fields.py"]),
    "samplers": (["samplers"], ["tests/samplers"]),
    "networks": (["networks"], ["tests/networks", "tests/test_fields.py", "tests/interop/test_interop_diffusers.py"]),
    "training": (
        [
            "training/step.py",
            "training/trainer.py",
            "training/batches.py",
            "training/optimizer.py",
            "training/checkpoint.py",
        ],
        ["tests/training", "tests/networks/test_networks_ema.py", "tests/test_wiring.py", "tests/test_fields.py",
         "tests/distillation/test_distillation_teaching.py"],
    ),
    "evaluation": (["evaluation"], ["tests/evaluation"]),
    "restoration": (["restoration"], ["tests/restoration"]),
    "editing": (["editing"], ["tests/editing"]),
    "distillation": (["distillation"], ["tests/distillation", "tests/test_fields.py"]),
    "interop": (["interop"], ["tests/interop", "tests/test_foreign_networks.py"]),
    "data": (["data"], ["tests/data", "tests/test_fields.py", "tests/training/test_training_batches.py"]),
    "model": (
        ["model.py", "generate.py", "export", "common"],
        ["tests/test_model.py", "tests/test_generation.py", "tests/test_wiring_sampling.py", "tests/export",
         "tests/common", "tests/test_fidelity.py", "tests/test_hardware.py", "tests/cli/test_cli_info.py"],
    ),
}  # fmt: skip
LIBRARIES = ("hypothesis", "scipy.stats", "diffusers.schedulers.scheduling_dpmsolver_multistep",
             "diffusers.schedulers.scheduling_unipc_multistep", "diffusers.models.unets.unet_2d", "PIL.Image",
             "matplotlib.pyplot", "sklearn.metrics", "datasets", "deepinv", "torch._dynamo",
             "torch.utils.tensorboard")  # fmt: skip


Record = dict[str, tuple[float, set[tuple[str, int]]]]  # seconds of each test, and the lines (file, number) it runs


class Recorder:
    """A plugin of pytest that records which lines of some files each test runs, and for how long."""

    def __init__(self, files: set[str], path: Path):
        self.files, self.path, self.lines, self.traced = files, path, set[tuple[str, int]](), 0
        self.tests: dict[str, tuple[float, list[str], set[tuple[str, int]]]] = {}
        self.shared: dict[str, set[tuple[str, int]]] = {}  # what a fixture runs for several tests

    def trace(self, frame: FrameType, event: str, argument: object) -> Callable[..., object] | None:
        self.traced += 1
        if self.traced > TRACED:
            sys.settrace(None)
        if frame.f_code.co_filename not in self.files:
            return None
        self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self.trace

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.lines, self.traced, start = set(), 0, time.perf_counter()
        threading.settrace(self.trace)
        sys.settrace(self.trace)
        yield
        sys.settrace(None)
        self.tests[item.nodeid] = time.perf_counter() - start, getattr(item, "fixturenames", []), self.lines

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> Iterator[None]:
        before, self.lines = self.lines, set()
        yield
        if self.traced > TRACED:
            self.traced = 0
            sys.settrace(self.trace)
        if fixturedef.scope != "function":
            self.shared[fixturedef.argname] = self.shared.get(fixturedef.argname, set()) | self.lines
        self.lines |= before

    def save(self) -> None:
        found = {
            test: [seconds, sorted(lines.union(*(self.shared.get(name, ()) for name in fixtures)))]
            for test, (seconds, fixtures, lines) in self.tests.items()
        }
        self.path.write_text(json.dumps(found))


class Chosen:
    """A plugin of pytest that runs the chosen tests in their order, and tests that are new to the record first."""

    def __init__(self, tests: list[str], record: Record):
        self.tests, self.record = tests, record

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        place = {test: number for number, test in enumerate(self.tests)}
        items[:] = [item for item in items if item.nodeid in place or item.nodeid not in self.record]
        items.sort(key=lambda item: place.get(item.nodeid, -1))


class Judge:
    """A plugin of pytest that judges mutants where pytest would run the tests of a room."""

    def __init__(self, room: str, seconds: float, judge_files: Callable[["Judge"], None]):
        self.room, self.seconds, self.judge_files = room, seconds, judge_files
        self.scratch = Path(tempfile.mkdtemp())
        self.items: dict[str, pytest.Item] = {}
        self.record: Record = {}
        self.functions: list[FunctionType] = []

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        for path in paths(self.room):
            name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
            importlib.import_module(name.removesuffix(".__init__"))
        files = {str(path) for path in paths(self.room)}
        functions = [found for found in gc.get_objects() if type(found) is FunctionType]
        self.functions = [function for function in functions if function.__code__.co_filename in files]
        gc.freeze()  # so that no fork looks through what all share
        self.record = self.recorded(files)
        self.judge_files(self)
        shutil.rmtree(self.scratch, ignore_errors=True)
        return True

    def recorded(self, files: set[str]) -> Record:
        """Return the seconds and the lines of each test, run on the source as it is where that is not known yet."""
        store = ROOT / ".mutants" / f"{self.room}.json"
        store.parent.mkdir(exist_ok=True)
        known = json.loads(store.read_text()) if store.exists() else {}
        helpers = [path for path in (ROOT / "tests").rglob("*.py") if not path.stem.startswith("test_")]
        base = b"".join(path.read_bytes() for path in sorted([*(ROOT / "src").rglob("*.py"), *helpers]))
        for file in dict.fromkeys(_file(test) for test in self.items):
            key = hashlib.sha256(base + (ROOT / file).read_bytes()).hexdigest()
            if known.get(file, {}).get("key") != key:
                recorder = Recorder(files, self.scratch / "record.json")
                tests = [test for test in self.items if _file(test) == file]
                if _fails(lambda tests=tests, recorder=recorder: self._run(tests, recorder), 3600):
                    pytest.exit(f"the tests in {file} fail on the source as it is", 2)
                known[file] = {"key": key, "tests": json.loads(recorder.path.read_text())}
                store.write_text(json.dumps(known))
        return {
            test: (seconds, {(file, line) for file, line in lines})
            for tests in known.values()
            for test, (seconds, lines) in tests["tests"].items()
            if test in self.items
        }

    def noticed(self, mutant: Mutant) -> bool:
        """Run tests with the mutant; True if one fails, or if they hang."""
        pairs = in_place(mutant, self.functions)
        tests = self._as_long_as_allowed(entering(mutant, self.record) if pairs else [])
        limit = PATIENCE * sum(self.record[test][0] for test in tests) + 10
        if tests:
            return _fails(lambda: self._run(tests, pairs=pairs), limit)
        tests = self._as_long_as_allowed(nearest(mutant, self.record))
        limit = PATIENCE * sum(self.record[test][0] for test in tests) + 60
        source = self.scratch / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        (self.scratch / mutant.file).write_text(mutant.source, encoding="utf-8")
        failed = _fails(lambda: self._run_anew(tests, source), limit)
        shutil.rmtree(source)
        return failed

    def _as_long_as_allowed(self, tests: list[str]) -> list[str]:
        ends = accumulate(self.record[test][0] for test in tests)
        return [
            test
            for number, (test, end) in enumerate(zip(tests, ends, strict=True))
            if not number or end <= self.seconds
        ]

    def _run(
        self,
        tests: list[str],
        recorder: Recorder | None = None,
        pairs: Iterable[tuple[FunctionType, CodeType]] = (),
    ) -> bool:
        """In a fork: run the tests until one fails, which is returned, with a recorder or with changed functions."""
        for function, code in pairs:
            function.__code__ = code
        items = [self.items[test] for test in tests]
        if recorder is not None:
            items[0].config.pluginmanager.register(recorder)
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if item.session.testsfailed:
                return True
        if recorder is not None:
            recorder.save()
        return False

    def _run_anew(self, tests: list[str], source: Path) -> bool:
        """In a fork: import the package from the changed source and run the tests; True if they fail."""
        places = tuple(f"{ROOT / folder}{os.sep}" for folder in ("src", "tests", "experiments"))
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(places):
                del sys.modules[name]
        sys.path.insert(0, str(source))
        os.environ["PYTHONPATH"] = str(source)
        files = dict.fromkeys(_file(test) for test in tests)
        code = pytest.main(
            [*OPTIONS, "-x", "--basetemp", str(self.scratch / "anew"), *files], [Chosen(tests, self.record)]
        )
        return code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)


def paths(room: str) -> list[Path]:
    """Return the source files of a room."""
    places = [ROOT / "src" / "ddpm" / place for place in ROOMS[room][0]]
    return sorted(file for place in places for file in (place.glob("*.py") if place.is_dir() else [place]))


def in_place(mutant: Mutant, functions: list[FunctionType]) -> list[tuple[FunctionType, CodeType]]:
    """Return the functions that a mutant changes, each with its new code; none if names do not tell which is which."""
    path = str(ROOT / mutant.file)
    codes = [compile(mutant.source, path, "exec", dont_inherit=True)]
    for code in codes:  # grows: modules hold classes and functions, classes hold methods
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    names = Counter(code.co_qualname for code in codes)
    found = {code.co_qualname: code for code in codes if names[code.co_qualname] == 1 and "<" not in code.co_qualname}
    pairs = [
        (function, found.get(function.__code__.co_qualname, function.__code__))
        for function in functions
        if mutant.lines is not None and function.__code__.co_filename == path
    ]
    return [
        (function, code)
        for function, code in pairs
        if code != function.__code__ and code.co_freevars == function.__code__.co_freevars
    ]


def entering(mutant: Mutant, record: Record) -> list[str]:
    """Return the tests that run the statement of a mutant, the quickest first."""
    first, last = mutant.lines or (0, -1)
    wanted = {(str(ROOT / mutant.file), line) for line in range(first, last + 1)}
    return sorted((test for test, (_, lines) in record.items() if wanted & lines), key=lambda test: record[test][0])


def nearest(mutant: Mutant, record: Record) -> list[str]:
    """Return all tests: those in files named after the changed one, then those that enter it, the quickest first."""
    name, place = Path(mutant.file).stem.rstrip("s"), str(ROOT / mutant.file)
    inside = {test for test, (_, lines) in record.items() if any(file == place for file, _ in lines)}
    return sorted(record, key=lambda test: (name not in _file(test), test not in inside, record[test][0]))


def _file(test: str) -> str:
    return test.partition("::")[0]


def _fails(test: Callable[[], bool], limit: float) -> bool:
    """Call `test` in a forked process; True if it returns that, raises, computes longer than `limit`, or hangs."""
    child = os.fork()
    if child == 0:
        failed = True
        try:
            os.setsid()
            nothing = os.open(os.devnull, os.O_RDWR)
            for stream in range(3):
                os.dup2(nothing, stream)
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit)))
            failed = test()
        finally:
            os._exit(failed)
    start = time.monotonic()
    while time.monotonic() - start < SLEEP * limit * max(1.0, *os.getloadavg()):  # a full machine makes all tests wait
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status != 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def main() -> int:
    """Plant, test, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="*", default=list(ROOMS), choices=[[], *ROOMS], metavar="ROOM")
    parser.add_argument("--sample", type=int, default=40, help="mutants per file; 0 takes all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=40, help="run only the tests of a mutant that take so long")
    parser.add_argument("--out", type=Path, default=Path("mutants.json"), help="the report, which is continued")
    parser.add_argument("--again", action="store_true", help="plant the survivors of the report once more")
    options = parser.parse_args()
    options.out = options.out.absolute()
    os.chdir(ROOT)
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
    for library in LIBRARIES:  # before the forks
        with contextlib.suppress(ImportError):
            importlib.import_module(library)

    for room in options.rooms:
        files = [path for path in paths(room) if _wanted(path, _rows(options), options.again)]
        if missing := [str(path) for path in [*paths(room), *map(Path, ROOMS[room][1])] if not path.exists()]:
            raise SystemExit(f"ROOMS of {Path(__file__).name} names what is not there: {', '.join(missing)}")
        child = os.fork() if files else None  # what a room imports does not stay for the next
        if child == 0:
            judge = Judge(room, options.seconds, partial(judge_files, files=files, options=options))
            os._exit(pytest.main([*OPTIONS, "--basetemp", str(judge.scratch / "tests"), *ROOMS[room][1]], [judge]))
        if child and os.waitpid(child, 0)[1]:
            raise SystemExit(f"{room} could not be judged")
    rows = _rows(options).values()
    planted, seen = (sum(row[key] for row in rows) for key in ("planted", "noticed"))
    print(f"{seen} of {planted} noticed ({100 * seen / max(planted, 1):.1f}%)")
    return 0


def judge_files(judge: Judge, files: list[Path], options: argparse.Namespace) -> None:
    """Plant mutants in each file, or those of its survivors in the report, and write them into the report."""
    for path in files:
        file, found, rows = str(path.relative_to(ROOT)), mutants(path), _rows(options)
        if before := rows.get(file):
            taken, sure = [_same(survivor, found) for survivor in before["survivors"]], before["noticed"]
        else:
            random.Random(f"{options.seed} {path.name}").shuffle(found)
            taken, sure = found[: options.sample or None], 0
        same = [mutant for mutant in taken if mutant and mutant.why_equivalent]
        planted = [mutant for mutant in taken if mutant and not mutant.why_equivalent]
        survivors = [mutant for mutant in planted if not judge.noticed(mutant)]
        rows[file] = {
            "room": judge.room,
            "file": file,
            "planted": len(planted) + sure,
            "noticed": len(planted) - len(survivors) + sure,
            "survivors": [mutant.as_row() for mutant in survivors],
            "equivalent": (before["equivalent"] if before else [])
            + [{**mutant.as_row(), "why": mutant.why_equivalent} for mutant in same],
        }
        print(f"{file:<44} {rows[file]['noticed']:>4} of {rows[file]['planted']:>4} noticed", flush=True)
        for mutant in survivors:
            print(f"    line {mutant.line}: {mutant.was}  ->  {mutant.became}", flush=True)
        report = {"seed": options.seed, "sample": options.sample, "files": list(rows.values())}
        options.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _rows(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return what the report holds, by file."""
    if not options.out.exists():
        return {}
    report = json.loads(options.out.read_text(encoding="utf-8"))
    if (report["seed"], report["sample"]) != (options.seed, options.sample):
        raise SystemExit(f"{options.out} is of another seed or sample; choose another --out")
    return {row["file"]: row for row in report["files"]}


def _wanted(path: Path, rows: dict[str, dict[str, Any]], again: bool) -> bool:
    row = rows.get(str(path.relative_to(ROOT)))
    return bool(row and row["survivors"]) if again else row is None


def _same(survivor: dict[str, Any], found: list[Mutant]) -> Mutant | None:
    """Return the mutant of an earlier report, also if its line has moved; None if the source has changed there."""
    alike = [mutant for mutant in found if (mutant.was, mutant.became) == (survivor["was"], survivor["became"])]
    return min(alike, key=lambda mutant: abs(mutant.line - survivor["line"]), default=None)


if __name__ == "__main__":
    sys.exit(main())

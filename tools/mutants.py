"""Plant one-line errors in the source and count how many the mirrored tests notice.

    python tools/mutants.py [ROOM ...] [--sample 40] [--seed 0] [--jobs 1] [--out mutants.json] [--again mutants.json]

A mutant changes one expression: an operator, a comparison, a number, a truth value, the order of two arguments, a
keyword argument left out, a negation, a bound of a slice, a term, factor, root or limit left out, a variable taken for
its sibling (`alpha` for `alpha_prev`), a call or an update not made.

Each runs in a process forked from one that has imported everything. A change within a function is put into that
function there, and the tests that enter it run, the quickest first; what then survives, and what is changed elsewhere,
runs with the package imported again and with all tests of the room. A mutant that no test notices is a survivor: write
a test for it, or explain in mutants_equivalent.json why it changes nothing. `--sample` takes that many mutants of each
file, chosen by the seed. `--again` plants the survivors of an earlier report once more, and counts them anew.
"""

import argparse
import ast
import contextlib
import copy
import gc
import importlib
import io
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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
# a mutant that computes so many times as long as the source itself is noticed, and one that waits so many times that
PATIENCE, SLEEP = 5, 20
ROOMS = {  # files to change, and the tests that mirror them
    "diffusion": (["diffusion"], ["tests/diffusion", "tests/test_wiring.py"]),
    "samplers": (["samplers"], ["tests/samplers"]),
    "networks": (["networks"], ["tests/networks", "tests/interop/test_interop_diffusers.py"]),
    "training": (
        [
            "training/step.py",
            "training/trainer.py",
            "training/batches.py",
            "training/optimizer.py",
            "training/checkpoint.py",
        ],
        ["tests/training", "tests/networks/test_networks_ema.py", "tests/test_wiring.py"],
    ),
    "evaluation": (["evaluation"], ["tests/evaluation"]),
    "restoration": (["restoration"], ["tests/restoration"]),
    "editing": (["editing"], ["tests/editing"]),
    "distillation": (["distillation"], ["tests/distillation"]),
    "data": (["data"], ["tests/data", "tests/training/test_training_batches.py"]),
    "model": (
        ["model.py", "generate.py", "export", "common"],
        ["tests/test_model.py", "tests/test_generation.py", "tests/test_wiring_sampling.py", "tests/export",
         "tests/common", "tests/test_fidelity.py", "tests/cli/test_cli_info.py"],
    ),
}  # fmt: skip
# why no test can notice it -> "file: what it was -> what it became", with " in " and the line if there are others
REASONS = json.loads((ROOT / "tools" / "mutants_equivalent.json").read_text(encoding="utf-8"))
EQUIVALENT = {name: why for why, names in REASONS.items() for name in names}

OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Add,
}
PAIRS = [(ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn)]
COMPARISONS = {**dict(PAIRS), **{b: a for a, b in PAIRS}}
TERMS = (ast.Add, ast.Sub, ast.Mult, ast.Div)
LEFT_OUT = ("sqrt", "square", "exp", "log", "abs", "clamp", "mean", "expm1", "log1p", "detach", "float", "round", "min",
            "max", "int", "flip", "rsqrt", "clone", "to", "reversed", "sorted", "double")  # fmt: skip
SYMMETRIC = ("min", "max", "minimum", "maximum", "equal", "isdisjoint")
SHOWN = ("description", "help", "desc", "unit")  # keywords of what is only shown
LIBRARIES = ("hypothesis", "scipy.stats", "diffusers.schedulers.scheduling_dpmsolver_multistep",
             "diffusers.schedulers.scheduling_unipc_multistep", "diffusers.models.unets.unet_2d", "PIL.Image",
             "matplotlib.pyplot", "sklearn.metrics", "datasets", "deepinv", "torch._dynamo",
             "torch.utils.tensorboard")  # fmt: skip


Record = dict[str, tuple[float, set[tuple[str, int]]]]  # seconds of each test, and the lines (file, number) it runs


@dataclass(frozen=True)
class Mutant:
    """One change of one file: `line` of the source and its `text`, what it `was` and `became`.

    lines: the first and last of its statement, if a function holds it.
    """

    file: str
    line: int
    was: str
    became: str
    text: str
    source: str
    lines: tuple[int, int] | None

    @property
    def why_equivalent(self) -> str | None:
        name = f"{self.file.removeprefix('src/ddpm/')}: {self.was} -> {self.became}"
        return EQUIVALENT.get(name) or EQUIVALENT.get(f"{name} in {self.text}")

    def as_row(self) -> dict[str, Any]:
        return {"line": self.line, "was": self.was, "became": self.became}


def changes(node: ast.AST, siblings: set[str]) -> Iterator[ast.AST]:
    """Yield each small change of one node as a changed copy; `siblings` are the variables of its function."""
    match node:
        case ast.BinOp(op=op, left=left, right=right) if type(op) in OPERATORS:
            yield _with(node, op=OPERATORS[type(op)]())
            if isinstance(op, TERMS):
                yield from (left, right)
        case ast.Name(id=name, ctx=ast.Load()) if name in siblings:
            alike = sorted(other for other in siblings if other != name and _stem(other) == _stem(name))
            yield from (ast.Name(other, ast.Load()) for other in alike[:2])
        case ast.Expr(value=ast.Call()) | ast.AugAssign():
            yield ast.Pass()
        case ast.Compare(ops=[op, *rest]) if type(op) in COMPARISONS:
            yield _with(node, ops=[COMPARISONS[type(op)](), *rest])
        case ast.BoolOp(op=op):
            yield _with(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(value + 1)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.Slice(lower=lower, upper=upper):
            if lower is not None:
                yield _with(node, lower=None)
            if upper is not None:
                yield _with(node, upper=None)
        case ast.Call(func=ast.Attribute(attr=name, value=value), args=[]) if name in LEFT_OUT:
            yield value  # x.sqrt()
        case ast.Call(func=function, args=arguments, keywords=keywords):
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if name in LEFT_OUT:  # math.sqrt(x), or x.clamp(0, 1)
                module = isinstance(function, ast.Name) or getattr(function.value, "id", "") in ("math", "np", "torch")
                yield arguments[0] if module else function.value
            starred = any(isinstance(argument, ast.Starred) for argument in arguments[:2])
            if len(arguments) >= 2 and not starred and name not in SYMMETRIC:
                yield _with(node, args=[arguments[1], arguments[0], *arguments[2:]])
            for keyword in keywords:
                if keyword.arg and keyword.arg not in SHOWN:
                    yield _with(node, keywords=[other for other in keywords if other is not keyword])


def _stem(name: str) -> str:
    return name.partition("_")[0]


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def mutants(path: Path) -> list[Mutant]:
    """Return every mutant of a file; messages, annotations, decorators and assertions are left alone."""
    text, found = path.read_bytes(), []
    tree, starts = ast.parse(text), list(accumulate(map(len, text.splitlines(keepends=True)), initial=0))
    siblings: dict[ast.AST, set[str]] = {}
    lines: dict[ast.AST, tuple[int, int]] = {}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            names = [name for name in ast.walk(function) if isinstance(name, ast.Name)]
            stored = {name.id for name in names if isinstance(name.ctx, ast.Store)}
            given = {argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)}
            siblings |= dict.fromkeys(ast.walk(function), stored | given)
            for statement in (node for part in function.body for node in ast.walk(part) if isinstance(node, ast.stmt)):
                body = getattr(statement, "body", None)
                last = max(statement.lineno, body[0].lineno - 1) if body else statement.end_lineno
                lines |= dict.fromkeys(ast.walk(statement), (statement.lineno, last))  # the innermost one stays
    for node in list(_code(tree)):
        for new in changes(node, siblings.get(node, set())):
            was, became = ast.unparse(node), ast.unparse(new)
            if was != became:
                start, end = (
                    starts[node.lineno - 1] + node.col_offset,
                    starts[node.end_lineno - 1] + node.end_col_offset,
                )
                code = became if isinstance(new, ast.Pass | ast.Slice) else f"({became})"
                source = (text[:start] + code.encode() + text[end:]).decode()
                place = str(path.relative_to(ROOT)), node.lineno
                line = text.splitlines()[node.lineno - 1].decode().strip()
                found.append(Mutant(*place, was[:160], became[:160], line, source, lines.get(node)))
    return found


def _code(node: ast.AST) -> Iterator[ast.AST]:
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
                continue
            if isinstance(child, ast.AST):
                yield child
                yield from _code(child)


class Recorder:
    """A plugin of pytest that records which lines of the package each test runs, and for how long."""

    def __init__(self, path: Path):
        self.path, self.package, self.lines = path, str(ROOT / "src"), set[tuple[str, int]]()
        self.tests: dict[str, tuple[float, list[str], set[tuple[str, int]]]] = {}
        self.shared: dict[str, set[tuple[str, int]]] = {}  # what a fixture runs for several tests

    def trace(self, frame: FrameType, event: str, argument: object) -> Callable[..., object] | None:
        if not frame.f_code.co_filename.startswith(self.package):
            return None
        self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self.trace

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.lines, start = set(), time.perf_counter()
        threading.settrace(self.trace)
        sys.settrace(self.trace)
        yield
        sys.settrace(None)
        self.tests[item.nodeid] = time.perf_counter() - start, getattr(item, "fixturenames", []), self.lines

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> Iterator[None]:
        before, self.lines = self.lines, set()
        yield
        if fixturedef.scope != "function":
            self.shared[fixturedef.argname] = self.shared.get(fixturedef.argname, set()) | self.lines
        self.lines |= before

    def pytest_sessionfinish(self) -> None:
        found = {
            test: [seconds, sorted(lines.union(*(self.shared.get(name, ()) for name in fixtures)))]
            for test, (seconds, fixtures, lines) in self.tests.items()
        }
        self.path.write_text(json.dumps(found))


def recorded(tests: list[str]) -> Record:
    """Run the tests on the source as it is; return the seconds and the lines of each test. Ends if one fails."""
    with tempfile.TemporaryDirectory() as scratch:
        record = Path(scratch) / "record.json"
        if _fails(None, ROOT / "src", [tests], 3600, Recorder(record)):
            raise SystemExit(f"the tests in {', '.join(tests)} fail on the source as it is")
        found = json.loads(record.read_text())
    return {test: (seconds, {(file, line) for file, line in lines}) for test, (seconds, lines) in found.items()}


def entering(mutant: Mutant, record: Record) -> list[str]:
    """Return the tests that run the statement of a mutant, the quickest first."""
    if mutant.lines is None:
        return []
    wanted = {(str(ROOT / mutant.file), line) for line in range(mutant.lines[0], mutant.lines[1] + 1)}
    return sorted((test for test, (_, lines) in record.items() if wanted & lines), key=lambda test: record[test][0])


def noticed(
    mutant: Mutant,
    tests: list[str],
    record: Record,
    limit: float,
    quick: bool = False,
) -> bool:
    """Run the tests with the mutant; True if they fail or hang."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        (Path(scratch) / mutant.file).write_text(mutant.source, encoding="utf-8")
        chosen = entering(mutant, record)
        if chosen and _fails(mutant, source, [chosen], limit):
            return True
        if quick and mutant.lines is not None:
            return False
        return _fails(None, source, [[file] for file in _nearest_first(tests, Path(mutant.file).stem)], limit)


def _fails(
    in_place: Mutant | None, source: Path, runs: list[list[str]], limit: float, plugin: object | None = None
) -> bool:
    """Run pytest on each list of tests in turn, in a forked process that has its own session."""
    child = os.fork()
    if child == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit)))
        _run(in_place, source, runs, plugin)
    deadline = time.monotonic() + SLEEP * limit
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status != 0
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def _nearest_first(tests: list[str], module: str) -> list[str]:
    """Return the test files, those that are named after the module first."""
    files = [file for test in tests for file in (sorted(Path(test).glob("test_*.py")) or [Path(test)])]
    return [str(file) for file in sorted(files, key=lambda file: module.rstrip("s") not in file.stem)]


def _run(in_place: Mutant | None, source: Path, runs: list[list[str]], plugin: object | None) -> None:
    """In the child: run pytest against the changed source, and leave with its exit code."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os.environ["PYTHONPATH"] = str(source)
    if in_place is not None:
        _put_in_place(in_place)
    elif source != ROOT / "src":
        _forget("src")
        sys.path.insert(0, str(source))
    options = ["-x", "-q", "-p", "no:cacheprovider", "--no-header"]
    plugins = [] if plugin is None else [plugin]
    os._exit(any(pytest.main([*options, *run], plugins) for run in runs))  # a run that notices spares the others


def _put_in_place(mutant: Mutant) -> None:
    """Give every function of the changed file its code from the changed source, where names tell which is which."""
    path = str(ROOT / mutant.file)
    codes = [compile(mutant.source, path, "exec")]
    for code in codes:  # grows: modules hold classes and functions, classes hold methods
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    names = Counter(code.co_qualname for code in codes)
    found = {code.co_qualname: code for code in codes if names[code.co_qualname] == 1 and "<" not in code.co_qualname}
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and function.__code__.co_filename == path:
            function.__code__ = found.get(function.__code__.co_qualname, function.__code__)


def _warm(tests: list[str]) -> None:
    """Import what the tests import, and forget the tests themselves, which may hold what the source computed."""
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *tests])
    _forget("tests", "experiments")


def _spent() -> float:
    """Return the seconds that ended children computed."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _forget(*folders: str) -> None:
    places = tuple(f"{ROOT / folder}{os.sep}" for folder in folders)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(places):
            del sys.modules[name]


def main() -> int:
    """Plant, test, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="*", default=list(ROOMS), choices=[[], *ROOMS], metavar="ROOM")
    parser.add_argument("--sample", type=int, default=40, help="mutants per file; 0 takes all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("mutants.json"))
    parser.add_argument("--again", type=Path, help="plant the survivors of this report once more")
    parser.add_argument("--quick", action="store_true", help="run only the tests that enter a mutant's statement")
    options = parser.parse_args()
    os.chdir(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
    for library in LIBRARIES:  # before the forks
        with contextlib.suppress(ImportError):
            importlib.import_module(library)

    earlier = json.loads(options.again.read_text())["files"] if options.again else []
    rows = [row for row in earlier if row["room"] not in options.rooms]
    for room in options.rooms:
        places, tests = ROOMS[room]
        paths = [ROOT / "src" / "ddpm" / place for place in places]
        if missing := [str(path) for path in [*paths, *map(Path, tests)] if not path.exists()]:
            raise SystemExit(f"ROOMS of {Path(__file__).name} names what is not there: {', '.join(missing)}")
        _warm(tests)
        start = _spent()
        record = recorded(tests)
        limit = PATIENCE * (_spent() - start) + 10
        notice = partial(noticed, tests=tests, record=record, limit=limit, quick=options.quick)
        for path in sorted(file for place in paths for file in (place.glob("*.py") if place.is_dir() else [place])):
            file, found = str(path.relative_to(ROOT)), mutants(path)
            if before := next((row for row in earlier if row["file"] == file), None):
                taken, sure = [_same(survivor, found) for survivor in before["survivors"]], before["noticed"]
            elif options.again:
                continue
            else:
                random.Random(f"{options.seed} {path.name}").shuffle(found)
                taken, sure = found[: options.sample or None], 0
            same = [mutant for mutant in taken if mutant and mutant.why_equivalent]
            planted = [mutant for mutant in taken if mutant and not mutant.why_equivalent]
            with ThreadPoolExecutor(options.jobs) as pool:
                results = list(pool.map(notice, planted))
            survivors = [mutant for mutant, seen in zip(planted, results, strict=True) if not seen]
            rows.append(
                {
                    "room": room,
                    "file": file,
                    "planted": len(planted) + sure,
                    "noticed": sum(results) + sure,
                    "survivors": [mutant.as_row() for mutant in survivors],
                    "equivalent": (before["equivalent"] if before else [])
                    + [{**mutant.as_row(), "why": mutant.why_equivalent} for mutant in same],
                }
            )
            print(f"{file:<44} {rows[-1]['noticed']:>4} of {rows[-1]['planted']:>4} noticed", flush=True)
            for mutant in survivors:
                print(f"    line {mutant.line}: {mutant.was}  ->  {mutant.became}", flush=True)
            report = {"seed": options.seed, "sample": options.sample, "files": rows}
            options.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    planted, seen = (sum(row[key] for row in rows) for key in ("planted", "noticed"))
    print(f"{seen} of {planted} noticed ({100 * seen / max(planted, 1):.1f}%)")
    return 0


def _same(survivor: dict[str, Any], found: list[Mutant]) -> Mutant | None:
    """Return the mutant of an earlier report, also if its line has moved; None if the source has changed there."""
    alike = [mutant for mutant in found if (mutant.was, mutant.became) == (survivor["was"], survivor["became"])]
    return min(alike, key=lambda mutant: abs(mutant.line - survivor["line"]), default=None)


if __name__ == "__main__":
    sys.exit(main())

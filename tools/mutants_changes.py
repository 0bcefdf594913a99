"""The one-line errors that mutants.py plants: every small change of a source file."""

import ast
import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
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
                same_lines = "\n" * (node.end_lineno - node.lineno)  # those below keep their numbers
                code = became + same_lines if isinstance(new, ast.Pass | ast.Slice) else f"({became}{same_lines})"
                source = (text[:start] + code.encode() + text[end:]).decode()
                place = str(path.relative_to(ROOT)), node.lineno
                line = text.splitlines()[node.lineno - 1].decode().strip()
                found.append(Mutant(*place, was[:400], became[:400], line, source, lines.get(node)))
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

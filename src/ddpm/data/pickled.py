"""CIFAR's Python batches are pickles, and unpickling can run any code. This reads one as plain data instead.

`pickletools.genops` only names the instructions; the few that build dictionaries, lists, numbers, strings and numpy's
byte arrays are followed here, and nothing in the file is imported or called.
"""

import pickletools
from typing import Any

import numpy as np

from ddpm.errors import UserError

MOST_INSTRUCTIONS = 3_000_000  # CIFAR-100's training file, the longest, has fewer than 400,000
ARRAY = {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"}
ENCODE = {"_codecs encode"}
DTYPE = {"numpy dtype"}


class _Mark:
    """Where a tuple, list or dictionary begins on the stack."""


class _Named:
    """A global the pickle names; it stays a name."""

    def __init__(self, name: str):
        self.name = name


class _Made:
    """What the pickle would have a global build: its name, its arguments and, later, its state."""

    def __init__(self, name: str, arguments: tuple):
        self.name, self.arguments, self.state = name, arguments, None


def read_batch(data: bytes, path) -> dict[bytes, Any]:
    """The dictionary in a pickled CIFAR batch: numbers, bytes, lists, and uint8 arrays. Strings come back as bytes.

    Raises UserError for a file that is no such pickle, or wants anything beyond plain data.
    """
    try:
        found = _follow(data)
        if not isinstance(found, dict):
            raise ValueError("it holds no dictionary")
        return {key: _array(value) if isinstance(value, _Made) else value for key, value in found.items()}
    except Exception as error:
        raise UserError(f"{path} is not a CIFAR batch of plain data: {error}") from error


def _follow(data: bytes) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def from_mark() -> list[Any]:
        place = next(index for index in range(len(stack) - 1, -1, -1) if isinstance(stack[index], _Mark))
        items = stack[place + 1 :]
        del stack[place:]
        return items

    def call(name: Any, arguments: Any) -> Any:
        if isinstance(name, _Named) and isinstance(arguments, tuple):
            if name.name in ENCODE:
                return arguments[0]  # how Python 3 writes bytes in old protocols; strings are bytes here anyway
            if name.name in ARRAY | DTYPE:
                return _Made(name.name, arguments)
        raise ValueError(f"it would call {getattr(name, 'name', 'something')}")

    argument: Any
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if count > MOST_INSTRUCTIONS:
            raise ValueError("it is far longer than any CIFAR batch")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                stack.append(_Mark())
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                stack.append(argument)
            case "BINSTRING" | "SHORT_BINSTRING" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINBYTES" | "SHORT_BINBYTES":
                stack.append(argument if isinstance(argument, bytes) else argument.encode("latin-1"))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode.name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "TUPLE":
                stack.append(tuple(from_mark()))
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items = from_mark()
                stack[-1].extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set(stack[-1], key, value)
            case "SETITEMS":
                items = from_mark()
                for key, value in zip(items[::2], items[1::2], strict=True):
                    _set(stack[-1], key, value)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_Named(argument))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_Named(f"{module.decode()} {name.decode()}"))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(call(stack.pop(), arguments))
            case "BUILD":
                state = stack.pop()
                stack[-1].state = state
            case other:
                raise ValueError(f"it uses the instruction {other}")
    raise ValueError("it does not end")


def _set(dictionary: Any, key: Any, value: Any) -> None:
    if not isinstance(dictionary, dict) or not isinstance(key, bytes):
        raise ValueError("its keys are not strings")
    dictionary[key] = value


def _array(made: _Made) -> np.ndarray:
    """A pickled uint8 array, from the state numpy would have been given: (version, shape, dtype, fortran, bytes)."""
    if made.name not in ARRAY or not isinstance(made.state, tuple) or len(made.state) != 5:
        raise ValueError("it holds an object that is no array")
    _, shape, dtype, fortran, data = made.state
    if not isinstance(dtype, _Made) or dtype.name not in DTYPE or dtype.arguments[0] not in (b"u1", b"|u1"):
        raise ValueError("its array is not of bytes")
    return np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")

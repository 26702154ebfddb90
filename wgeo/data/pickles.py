"""Values of a pickle without running anything: lists, dicts, texts, numbers, NumPy's bytes.

The CIFAR sets are shipped as pickles, and a pickle is a program. Here its instructions are read
(`pickletools.genops` carries none out) and only those that build plain values are followed; what
it would import is kept as a name, and what it would call as a `Call`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DataError

_MOST = 2_000_000  # instructions; the largest set, CIFAR-100, has some 300,000
_PLAIN = (
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BYTEARRAY8"),
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_MARK = object()


@dataclass(frozen=True)
class Name:
    """What a pickle would import."""

    of: str


@dataclass(eq=False)
class Call:
    """What a pickle would call, with what, and the state it would set."""

    of: Any
    arguments: Any
    state: Any = None


def plain_values(body: bytes) -> Any:
    """Return the value of a pickle, in which whatever is no plain value is a `Name` or `Call`.

    Raises
    ------
    DataError
        Damaged, too many instructions, or instructions that plain values do not need.
    """
    try:
        return _Machine().run(body)
    except DataError:
        raise
    except Exception as error:  # an instruction cut short, a stack that is empty
        raise DataError(f"it is no pickle of plain values ({type(error).__name__})") from error


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, body: bytes) -> Any:
        for count, (op, argument, _) in enumerate(pickletools.genops(body)):
            if count > _MOST:
                raise DataError(f"it has more than {_MOST} instructions")
            if op.name == "STOP":
                return self.stack.pop()
            self._step(op.name, argument)
        raise DataError("it is cut short")

    def _step(self, op: str, argument: Any) -> None:
        stack = self.stack
        if op in _PLAIN:
            stack.append(argument)
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op])
        elif op in _EMPTY:
            stack.append(_EMPTY[op]())
        elif op in ("PROTO", "FRAME"):
            pass
        elif op == "MARK":
            stack.append(_MARK)
        elif op == "POP":
            stack.pop()
        elif op in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if op == "MEMOIZE" else argument] = stack[-1]
        elif op in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif op in ("TUPLE1", "TUPLE2", "TUPLE3", "TUPLE", "LIST", "DICT"):
            self._made(op)
        elif op in ("APPEND", "APPENDS", "SETITEM", "SETITEMS"):
            self._filled(op)
        elif op == "GLOBAL":
            stack.append(Name(str(argument).replace(" ", ".", 1)))
        elif op == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(Name(f"{_text(module)}.{_text(name)}"))
        elif op in ("REDUCE", "NEWOBJ"):
            arguments, called = stack.pop(), stack.pop()
            stack.append(_bytes_of(called, arguments))
        elif op == "BUILD":
            state, built = stack.pop(), stack[-1]
            if not isinstance(built, Call):
                raise DataError("it sets the state of a plain value")
            built.state = state
        else:
            raise DataError(f"its instruction {op} builds no plain value")

    def _marked(self) -> list[Any]:
        """Take what lies above the last mark, and the mark."""
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _made(self, op: str) -> None:
        if op[-1].isdigit():
            values = [self.stack.pop() for _ in range(int(op[-1]))][::-1]
        else:
            values = self._marked()
        if op == "DICT":
            self.stack.append({})
            self._set(values)
        else:
            self.stack.append(values if op == "LIST" else tuple(values))

    def _filled(self, op: str) -> None:
        several = op.endswith("S")
        count = 1 if op.startswith("APPEND") else 2
        values = self._marked() if several else [self.stack.pop() for _ in range(count)][::-1]
        if count == 2:
            self._set(values)
        elif isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)
        else:
            raise DataError("it appends to what is no list")

    def _set(self, values: list[Any]) -> None:
        into = self.stack[-1]
        if not isinstance(into, dict):
            raise DataError("it sets entries of what is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str | bytes):  # a hash of nested tuples can take for ever
                raise DataError("it has keys that are no text")
            into[key] = value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise DataError("it imports what has no name")
    return value


def pixels_of(value: Any) -> np.ndarray:
    """Return the uint8 array (n, d) that a pickle of NumPy's describes.

    Raises
    ------
    DataError
        It describes something else, or fewer bytes than its shape.
    """
    if not isinstance(value, Call) or not isinstance(value.of, Name):
        raise DataError("its images are no array")
    module, _, name = value.of.of.rpartition(".")
    if not module.startswith("numpy"):
        raise DataError("its images are no array")
    if name == "_reconstruct" and isinstance(value.state, tuple) and len(value.state) == 5:
        _, shape, dtype, fortran, body = value.state
    elif name == "_frombuffer" and isinstance(value.arguments, tuple) and len(value.arguments) == 4:
        body, dtype, shape, order = value.arguments
        fortran = order == "F"
    else:
        raise DataError("its images are no array")
    kind = dtype.arguments if isinstance(dtype, Call) else None
    if not isinstance(kind, tuple) or not kind or kind[0] not in ("u1", b"u1"):
        raise DataError("its images are not of type uint8")
    body = body.encode("latin-1", "replace") if isinstance(body, str) else body  # Python 2
    if not isinstance(body, bytes | bytearray):
        raise DataError("its images are no bytes")
    whole = isinstance(shape, tuple) and all(type(n) is int and 0 < n < 2**40 for n in shape)
    if not whole or len(shape) != 2 or shape[0] * shape[1] != len(body):
        raise DataError("the shape of its images is not what it holds")
    return np.frombuffer(body, np.uint8).reshape(shape, order="F" if fortran else "C")


def _bytes_of(called: Any, arguments: Any) -> Any:
    """A call, or the bytes that Python 3 writes as one in the protocols of Python 2."""
    if called == Name("_codecs.encode") and isinstance(arguments, tuple):
        match arguments:
            case (str() as text, "latin1"):
                return text.encode("latin-1")
    if called == Name("__builtin__.bytes") and arguments == ():
        return b""
    return Call(called, arguments)

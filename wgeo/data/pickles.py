"""Read plain values from a pickle without running it: lists, dicts, text, numbers, array bytes.

The CIFAR data sets are distributed as pickles, and a pickle is a program. `pickletools.genops`
reads its instructions without executing them. Only those that build plain values are followed;
imports are stored as a `Name`, and calls as a `Call`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DataError

_MAX_OPS = 2_000_000  # the largest data set, CIFAR-100, has about 300,000
_VALUE_OPS = (
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BYTEARRAY8"),
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY_CONTAINERS: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_MARK = object()


@dataclass(frozen=True)
class Name:
    """A name that a pickle would import, such as ``numpy.dtype``."""

    path: str


@dataclass(eq=False)
class Call:
    """A call that a pickle would make, and the state it would set on the result."""

    function: Any
    arguments: Any
    state: Any = None


def plain_values(body: bytes) -> Any:
    """Return the value of a pickle; a `Name` or `Call` replaces whatever is not a plain value.

    Raises
    ------
    DataError
        The pickle is damaged, too long, or has instructions that plain values do not need.
    """
    try:
        return _Machine().run(body)
    except DataError:
        raise
    except Exception as error:  # a truncated instruction, an empty stack
        raise DataError(f"it is not a pickle of plain values ({type(error).__name__})") from error


class _Machine:
    """A stack machine with the instructions that plain values need."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, body: bytes) -> Any:
        for count, (op, argument, _) in enumerate(pickletools.genops(body)):
            if count > _MAX_OPS:
                raise DataError(f"it has more than {_MAX_OPS} instructions")
            if op.name == "STOP":
                return self.stack.pop()
            self._step(op.name, argument)
        raise DataError("it is truncated")

    def _step(self, op: str, argument: Any) -> None:
        stack = self.stack
        if op in _VALUE_OPS:
            stack.append(argument)
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op])
        elif op in _EMPTY_CONTAINERS:
            stack.append(_EMPTY_CONTAINERS[op]())
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
            self._build(op)
        elif op in ("APPEND", "APPENDS", "SETITEM", "SETITEMS"):
            self._fill(op)
        elif op == "GLOBAL":
            stack.append(Name(str(argument).replace(" ", ".", 1)))
        elif op == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(Name(f"{_text(module)}.{_text(name)}"))
        elif op in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(_bytes_of(function, arguments))
        elif op == "BUILD":
            state, target = stack.pop(), stack[-1]
            if not isinstance(target, Call):
                raise DataError("it sets the state of a plain value")
            target.state = state
        else:
            raise DataError(f"its instruction {op} does not build a plain value")

    def _pop_to_mark(self) -> list[Any]:
        """Pop the values above the last mark, and the mark."""
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _build(self, op: str) -> None:
        if op[-1].isdigit():
            values = [self.stack.pop() for _ in range(int(op[-1]))][::-1]
        else:
            values = self._pop_to_mark()
        if op == "DICT":
            self.stack.append({})
            self._set(values)
        else:
            self.stack.append(values if op == "LIST" else tuple(values))

    def _fill(self, op: str) -> None:
        several = op.endswith("S")
        count = 1 if op.startswith("APPEND") else 2
        values = self._pop_to_mark() if several else [self.stack.pop() for _ in range(count)][::-1]
        if count == 2:
            self._set(values)
        elif isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)
        else:
            raise DataError("it appends to something other than a list")

    def _set(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise DataError("it sets entries of something other than a dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str | bytes):  # hashing nested tuples can take forever
                raise DataError("it has keys that are not text")
            target[key] = value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise DataError("it imports an object whose name is not text")
    return value


def pixels_of(value: Any) -> np.ndarray:
    """Return the uint8 array (n, d) described by a NumPy pickle.

    Raises
    ------
    DataError
        It describes something else, or its number of bytes does not match its shape.
    """
    if not isinstance(value, Call) or not isinstance(value.function, Name):
        raise DataError("its images are not an array")
    module, _, name = value.function.path.rpartition(".")
    if not module.startswith("numpy"):
        raise DataError("its images are not an array")
    if name == "_reconstruct" and isinstance(value.state, tuple) and len(value.state) == 5:
        _, shape, dtype, fortran, body = value.state
    elif name == "_frombuffer" and isinstance(value.arguments, tuple) and len(value.arguments) == 4:
        body, dtype, shape, order = value.arguments
        fortran = order == "F"
    else:
        raise DataError("its images are not an array")
    type_arguments = dtype.arguments if isinstance(dtype, Call) else None
    if (
        not isinstance(type_arguments, tuple)
        or not type_arguments
        or type_arguments[0] not in ("u1", b"u1")
    ):
        raise DataError("its images are not of type uint8")
    body = body.encode("latin-1", "replace") if isinstance(body, str) else body  # Python 2
    if not isinstance(body, bytes | bytearray):
        raise DataError("its images are not bytes")
    valid = isinstance(shape, tuple) and all(type(n) is int and 0 < n < 2**40 for n in shape)
    if not valid or len(shape) != 2 or shape[0] * shape[1] != len(body):
        raise DataError("the shape of its images does not match their number of bytes")
    return np.frombuffer(body, np.uint8).reshape(shape, order="F" if fortran else "C")


def _bytes_of(function: Any, arguments: Any) -> Any:
    """Return a call, or the bytes that it builds; protocols before 3 store bytes as calls."""
    if function == Name("_codecs.encode") and isinstance(arguments, tuple):
        match arguments:
            case (str() as text, "latin1"):
                return text.encode("latin-1")
    if function == Name("__builtin__.bytes") and arguments == ():
        return b""
    return Call(function, arguments)

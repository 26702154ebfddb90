"""Inert stand-ins for objects of any class, built by ``torch.load`` with ``weights_only=True``.

A stand-in stores what the file passes to it and does nothing else, so the tensors of a file can be
read whatever other objects it contains.
"""

from __future__ import annotations

import itertools
import math
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import numpy as np
import torch
from torch import serialization

from ..errors import CheckpointError

_LOCK = threading.Lock()  # torch has one list of safe names per process
_MAX_DEPTH = 100  # levels of nested modules
_MAX_ENTRIES = 200_000  # parameters, buffers and modules; shared ones count at every occurrence
_NUMERIC_DTYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


class StandIn:
    """The arguments and state of an object of some class."""

    __slots__ = ("arguments", "state")

    arguments: tuple[Any, ...]  # of the constructor
    state: Any  # set afterwards, usually the attributes; None if it was not set
    class_name = ""  # qualified, such as numpy.dtype

    def __new__(cls, *args: Any) -> Any:
        stand_in = object.__new__(cls)
        stand_in.arguments, stand_in.state = args, None
        return stand_in

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _AsDict(StandIn):
    """Replaces objects to which the pickle adds entries: each becomes an OrderedDict."""

    def __new__(cls, *args: Any) -> Any:
        return OrderedDict()


class _AsList(StandIn):
    """Replaces objects to which the pickle appends: each becomes a plain list."""

    def __new__(cls, *args: Any) -> Any:
        return []


_KINDS = {"object": StandIn, "dict": _AsDict, "list": _AsList}


def load_inert(file: IO[bytes], names: Mapping[str, str]) -> Any:
    """Load tensors and plain objects from a file of torch.save, with stand-ins for `names`.

    `names` is as `inspect_pickles` returns it. Classes that other code declared safe
    (``torch.serialization.add_safe_globals``) are not allowed here.
    """
    stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (type("StandIn", (_KINDS[kind],), {"__slots__": (), "class_name": name}), name)
        for name, kind in names.items()
    ]
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's deprecations do not concern the user
        previous = serialization.get_safe_globals()
        serialization.clear_safe_globals()
        try:
            serialization.add_safe_globals(stand_ins)
            return torch.load(file, map_location="cpu", weights_only=True)
        finally:
            serialization.clear_safe_globals()
            serialization.add_safe_globals(previous)


def attributes(value: Any) -> dict[Any, Any]:
    """Return the attributes of the object that a stand-in replaces; empty if unknown."""
    if isinstance(value, StandIn):
        for part in (value.state, *value.arguments):
            if isinstance(part, dict):
                return part
    return {}


def is_module(value: Any) -> bool:
    """Return whether a value is a stand-in for a ``torch.nn.Module``."""
    # dict's own methods: an unpickled OrderedDict may carry attributes that hide its methods.
    entries = attributes(value)
    return all(isinstance(dict.get(entries, part), dict) for part in ("_parameters", "_modules"))


def state_of(module: Any, name: str) -> dict[str, torch.Tensor]:
    """Return the state dict of a pickled network from its stand-in."""
    return dict(_entries(module, "", itertools.count(), name))


def _entries(
    module: Any, prefix: str, counter: Iterator[int], name: str
) -> Iterator[tuple[str, torch.Tensor]]:
    entries = attributes(module)
    if prefix.count(".") > _MAX_DEPTH:
        raise CheckpointError(
            f"{name} contains modules nested more than {_MAX_DEPTH} deep, or a module that "
            "contains itself. It was not read."
        )
    non_persistent = dict.get(entries, "_non_persistent_buffers_set")
    for part in ("_parameters", "_buffers", "_modules"):
        members = dict.get(entries, part)
        for key, value in dict.items(members) if isinstance(members, dict) else ():
            if next(counter) > _MAX_ENTRIES:
                raise CheckpointError(
                    f"{name} contains a network of more than {_MAX_ENTRIES} parts. Reading them "
                    "could use up the memory, so the network was not read."
                )
            if not isinstance(key, str) or (
                isinstance(non_persistent, set) and key in non_persistent
            ):
                continue
            if part == "_modules" and is_module(value):
                yield from _entries(value, f"{prefix}{key}.", counter, name)
            elif isinstance(value, torch.Tensor):
                yield prefix + key, value


def as_array(value: Any) -> np.ndarray | None:
    """Return the numbers in a stand-in for a NumPy array or scalar; None for anything else.

    They are not decoded by NumPy, which would trust the sizes declared in the file.
    """
    if not isinstance(value, StandIn):
        return None
    if value.class_name.endswith("multiarray.scalar") and len(value.arguments) == 2:
        shape: Any = ()
        fortran_order: Any = False
        dtype_stand_in, body = value.arguments
    elif value.class_name.endswith("multiarray._reconstruct") and isinstance(value.state, tuple):
        if len(value.state) != 5:
            return None
        _, shape, dtype_stand_in, fortran_order, body = value.state
    else:
        return None
    dtype = _dtype(dtype_stand_in)
    if dtype is None or not isinstance(body, bytes) or not body or not isinstance(shape, tuple):
        return None
    if not all(type(side) is int and side >= 0 for side in shape) or len(shape) > 8:
        return None
    if math.prod(shape) * dtype.itemsize != len(body):
        return None
    array = np.frombuffer(body, dtype).reshape(shape, order="F" if fortran_order is True else "C")
    return array.astype(dtype.newbyteorder("="), order="C")  # a writable copy


def _dtype(value: Any) -> np.dtype | None:
    if not isinstance(value, StandIn) or value.class_name != "numpy.dtype":
        return None
    name = value.arguments[0] if value.arguments else None
    if not isinstance(name, str) or name not in _NUMERIC_DTYPES:
        return None
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "<"
    return np.dtype(name).newbyteorder(">" if order == ">" else "<")

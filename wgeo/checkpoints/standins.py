"""Objects of any class, read by torch's restricted reader into inert stand-ins.

A stand-in keeps what it was handed and does nothing else: it calls, prints, hashes and compares
nothing of it. So a file gives up its tensors whatever lies beside them, and no code of it runs.
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

_LOCK = threading.Lock()  # torch keeps one list of safe names for the whole process
_DEEPEST = 100  # modules inside modules
_MOST_ENTRIES = 200_000  # a part that stands in a hundred places is looked at a hundred times
_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


class StandIn:
    """Keeps what an object of some class was made of.

    Attributes
    ----------
    made_from : tuple
        The arguments it was made with.
    state : object
        What it was given afterwards, usually its attributes; None if nothing.
    """

    __slots__ = ("made_from", "state")

    made_from: tuple[Any, ...]
    state: Any
    stands_for = ""

    def __new__(cls, *args: Any) -> Any:
        """Keep the arguments."""
        made = object.__new__(cls)
        made.made_from, made.state = args, None
        return made

    def __setstate__(self, state: Any) -> None:
        """Keep the state."""
        self.state = state


class _AsDict(StandIn):
    def __new__(cls, *args: Any) -> Any:
        return OrderedDict()


class _AsList(StandIn):
    def __new__(cls, *args: Any) -> Any:
        return []


_KINDS = {"object": StandIn, "dict": _AsDict, "list": _AsList}


def load_inert(file: IO[bytes], names: Mapping[str, str]) -> Any:
    """Load a file of torch.save with stand-ins for these names, and nothing else but tensors.

    What other code declared safe (``torch.serialization.add_safe_globals``) does not count here.

    Parameters
    ----------
    file : binary file
    names : mapping of str to str
        As `inspect_pickles` returns them.
    """
    stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (type("StandIn", (_KINDS[kind],), {"__slots__": (), "stands_for": name}), name)
        for name, kind in names.items()
    ]
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's deprecations: of no use to who reads a file
        before = serialization.get_safe_globals()
        serialization.clear_safe_globals()
        try:
            serialization.add_safe_globals(stand_ins)
            return torch.load(file, map_location="cpu", weights_only=True)
        finally:
            serialization.clear_safe_globals()
            serialization.add_safe_globals(before)


def attributes(value: Any) -> dict[Any, Any]:
    """Return what an object that is stood in for had as attributes; empty if it does not say."""
    if isinstance(value, StandIn):
        for held in (value.state, *value.made_from):
            if isinstance(held, dict):
                return held
    return {}


def is_module(value: Any) -> bool:
    """Whether a stand-in holds what a ``torch.nn.Module`` consists of."""
    # dict's own methods: an unpickled OrderedDict may carry attributes that hide its methods.
    held = attributes(value)
    return all(isinstance(dict.get(held, part), dict) for part in ("_parameters", "_modules"))


def state_of(module: Any, name: str) -> dict[str, torch.Tensor]:
    """Return the state dict of a pickled network, from what its stand-ins hold.

    Raises
    ------
    CheckpointError
        Its parts contain each other, or are more than a network has.
    """
    return dict(_entries(module, "", itertools.count(), name))


def _entries(
    module: Any, prefix: str, seen: Iterator[int], name: str
) -> Iterator[tuple[str, torch.Tensor]]:
    held = attributes(module)
    if prefix.count(".") > _DEEPEST:
        raise CheckpointError(
            f"{name} holds a network whose parts contain each other. It was not read."
        )
    passing = dict.get(held, "_non_persistent_buffers_set")
    for part in ("_parameters", "_buffers", "_modules"):
        for key, value in dict.items(dict.get(held, part) or {}):
            if next(seen) > _MOST_ENTRIES:
                raise CheckpointError(
                    f"{name} holds a network of more than {_MOST_ENTRIES} parts, made to exhaust "
                    "whoever reads it. It was not read."
                )
            if not isinstance(key, str) or (isinstance(passing, set) and key in passing):
                continue
            if part == "_modules" and is_module(value):
                yield from _entries(value, f"{prefix}{key}.", seen, name)
            elif isinstance(value, torch.Tensor):
                yield prefix + key, value


def as_array(value: Any) -> np.ndarray | None:
    """Return the NumPy array or scalar of plain numbers that a stand-in holds; None if it is none.

    Decoded here rather than by NumPy, which would believe the sizes that a file declares.
    """
    if not isinstance(value, StandIn):
        return None
    if value.stands_for.endswith("multiarray.scalar") and len(value.made_from) == 2:
        shape: Any = ()
        columns_first: Any = False
        described, body = value.made_from
    elif value.stands_for.endswith("multiarray._reconstruct") and isinstance(value.state, tuple):
        if len(value.state) != 5:
            return None
        _, shape, described, columns_first, body = value.state
    else:
        return None
    kind = _dtype(described)
    if kind is None or not isinstance(body, bytes) or not body or not isinstance(shape, tuple):
        return None
    if not all(type(side) is int and side >= 0 for side in shape) or len(shape) > 8:
        return None
    if math.prod(shape) * kind.itemsize != len(body):
        return None
    numbers = np.frombuffer(body, kind).reshape(shape, order="F" if columns_first is True else "C")
    return numbers.astype(kind.newbyteorder("="), order="C")  # a copy, which may be written to


def _dtype(value: Any) -> np.dtype | None:
    if not isinstance(value, StandIn) or value.stands_for != "numpy.dtype":
        return None
    name = value.made_from[0] if value.made_from else None
    if not isinstance(name, str) or name not in _NUMBERS:
        return None
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "<"
    return np.dtype(name).newbyteorder(">" if order == ">" else "<")

"""Read JSON into dataclasses and validate it against their annotations.

A `Part` is a JSON object; its fields are the keys. An annotation is one of the following:

- ``str``, ``bool``, ``int`` (64 bits), or ``float`` (between -1e300 and 1e300);
- ``Annotated[T, Check(...)]``: a value that a predicate accepts; ``Any``: every value;
- ``tuple[T, ...]``: a list; ``Mapping[str, T]`` or ``Mapping[int, T]``: an object with any keys;
- a NamedTuple: a list of the same length, read as None if one of its floats is null;
- a `Part`: an object;
- a union of these; with ``None``, the value may be null.

If a field has a default, its key may be missing or null. Keys without a field are kept in `json`.
Their values are checked only if the class sets `others` to their type.
"""

from __future__ import annotations

import math
import os
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import (
    Annotated,
    Any,
    ClassVar,
    NamedTuple,
    Self,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np

from ..errors import RecordError
from ..text import first_names, printable

_LARGEST = 1e300  # beyond it, squares and axes overflow
_MAX_NAMED = 5  # number of missing or invalid keys that an error names
_MAX_SHOWN = 30  # characters of an invalid value that an error shows


class Check(NamedTuple):
    """A predicate for values, and a text that says what it accepts."""

    accepts: Callable[[Any], bool]
    expected: str


class Fault(NamedTuple):
    """The location of a missing or invalid value, such as ``layers[1].name``, and the reason."""

    location: str
    reason: str = ""
    missing: bool = False


def is_whole(value: Any) -> bool:
    """Return whether a value is an integer that fits in 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value) and abs(value) <= _LARGEST
    return is_whole(value)


_CHECKS = {
    str: Check(lambda value: isinstance(value, str), "text"),
    bool: Check(lambda value: isinstance(value, bool), "true or false"),
    int: Check(is_whole, "an integer"),
    float: Check(_is_number, "a number"),
}
Count = Annotated[int, Check(lambda value: is_whole(value) and value >= 0, "a count")]


def array(*axes: int | None) -> Check:
    """Return the check for nested lists of numbers with these lengths of the axes; None for any."""

    def accepts(value: Any) -> bool:
        try:
            values = np.array(value, dtype=float)
        except (ValueError, TypeError, OverflowError):
            return False
        fits = all(axis in (None, size) for axis, size in zip(axes, values.shape, strict=False))
        return values.ndim == len(axes) and fits and bool((np.abs(values) <= _LARGEST).all())

    return Check(accepts, f"numbers along {len(axes)} axes")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Part:
    """A JSON object; subclasses are dataclasses. An empty object is false.

    Attributes
    ----------
    json : mapping
        The object as it was read, including the keys that are not fields.
    """

    json: Mapping[str, Any] = field(default_factory=dict)
    others: ClassVar[Any] = Any  # the type of the values under keys that are not fields

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, eq=False, repr=False, kw_only=True)(cls)

    @classmethod
    def of(cls, source: Any) -> Self:
        """Read a mapping or a result, in which any key may be missing.

        Without a default, a missing value becomes the empty value of its type: ``""``, ``()``,
        ``{}``, 0, an empty object, or otherwise None.

        Raises
        ------
        RecordError
            A value does not match its annotation; the message names it.
        """
        if isinstance(source, cls):
            return source
        values = source.to_dict() if hasattr(source, "to_dict") else source
        part, faults = read(cls, as_json(values))
        raise_on([fault for fault in faults if not fault.missing], "The record")
        return part  # type: ignore[no-any-return]

    def __bool__(self) -> bool:
        return bool(self.json)

    def measure(self, key: str) -> Any:
        """Return the value of a key, or its first entry if it is a list; None if missing."""
        value = self.json.get(key)
        return value[0] if isinstance(value, list) and value else value

    def only(self, *keys: str) -> dict[str, Any]:
        """Return the values of these keys; None for a missing key."""
        return {key: self.json.get(key) for key in keys}

    def plain(self, *without: str) -> dict[str, Any]:
        """Return all values except objects, lists, and those of keys in `without`."""
        return {
            key: value
            for key, value in self.json.items()
            if key not in without and not isinstance(value, list | dict)
        }


def read(annotation: Any, value: Any) -> tuple[Any, list[Fault]]:
    """Return a JSON value as its annotation describes it, and the faults found."""
    faults: list[Fault] = []
    return _reader(annotation)(value, "", faults), faults


def raise_on(faults: Sequence[Fault], name: str, advice: str = "") -> None:
    """Raise a RecordError with the first faults of the record `name`, if there are any."""
    lacking = [fault.location for fault in faults if fault.missing]
    invalid = [f"{f.location}{f.reason}" for f in faults if not f.missing]
    reasons = [f"lacks {first_names(lacking, _MAX_NAMED)}"] if lacking else []
    reasons += [f"is damaged in {first_names(invalid, _MAX_NAMED)}"] if invalid else []
    if reasons:
        raise RecordError(f"{name} {' and '.join(reasons)}{advice}.")


def as_json(value: Any) -> Any:
    """Convert a value to JSON types: arrays to lists, paths to text, NaN and infinity to null."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if hasattr(value, "tolist"):  # arrays and numbers of NumPy and torch
        return as_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, bool | int | float | str):
        return str(value) if isinstance(value, str) else value
    raise TypeError(f"a record cannot contain {type(value).__name__}")


# --- readers --------------------------------------------------------------------------------------

_Reader = Callable[[Any, str, list[Fault]], Any]


@cache
def _reader(annotation: Any) -> _Reader:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return lambda value, _location, _faults: value
    if (check := _check_of(annotation)) is not None:
        return _checked(check)
    if origin in (Union, types.UnionType):
        return _union(arguments)
    if origin is tuple:
        return _list(arguments[0])
    if origin is Mapping:
        return _mapping(*arguments)
    return _part(annotation) if issubclass(annotation, Part) else _named_tuple(annotation)


def _check_of(annotation: Any) -> Check | None:
    if get_origin(annotation) is Annotated:
        return get_args(annotation)[1]  # type: ignore[no-any-return]
    if get_origin(annotation) in (Union, types.UnionType):
        inner, *more = (each for each in get_args(annotation) if each is not types.NoneType)
        check = None if more else _check_of(inner)
        if check is not None and types.NoneType in get_args(annotation):
            accepts = check.accepts
            return Check(lambda value: value is None or accepts(value), check.expected)
    return _CHECKS.get(annotation)


def _mismatch(expected: str, value: Any, location: str) -> Fault:
    kinds: dict[Any, str] = {dict: "an object", list: "a list"}
    kind = kinds.get(type(value)) or repr(value)
    return Fault(location, f" (expected {expected}, got {printable(kind, _MAX_SHOWN)})")


def _checked(check: Check) -> _Reader:
    def read(value: Any, location: str, faults: list[Fault]) -> Any:
        if not check.accepts(value):
            faults.append(_mismatch(check.expected, value, location))
        return value

    return read


def _union(members: Sequence[Any]) -> _Reader:
    readers = [_reader(member) for member in members if member is not types.NoneType]

    def read(value: Any, location: str, faults: list[Fault]) -> Any:
        if value is None and types.NoneType in members:
            return None
        attempts: list[list[Fault]] = []
        for reader in readers:
            attempts.append([])
            result = reader(value, location, attempts[-1])
            if not attempts[-1]:
                return result
        faults += attempts[-1]
        return None

    return read


def _list(item: Any) -> _Reader:
    reader, check = _reader(item), _check_of(item)

    def read(value: Any, location: str, faults: list[Fault]) -> Any:
        if not isinstance(value, list):
            faults.append(_mismatch("a list", value, location))
            return ()
        if check is not None and all(map(check.accepts, value)):  # long lists of numbers
            return tuple(value)
        return tuple(reader(each, f"{location}[{i}]", faults) for i, each in enumerate(value))

    return read


def _named_tuple(kind: Any) -> _Reader:
    hints = get_type_hints(kind, include_extras=True).values()
    readers = [_reader(hint | None if hint is float else hint) for hint in hints]

    def read(value: Any, location: str, faults: list[Fault]) -> Any:
        parts: list[Fault] = []
        if isinstance(value, list) and len(value) == len(readers):
            result = kind(
                *(r(each, location, parts) for r, each in zip(readers, value, strict=True))
            )
            if not parts:
                return None if None in result else result
        faults.append(_mismatch(f"a list of {len(readers)} numbers", value, location))
        return None

    return read


def _mapping(key: Any, item: Any) -> _Reader:
    reader = _reader(item)

    def read(value: Any, location: str, faults: list[Fault]) -> Any:
        if not isinstance(value, dict):
            faults.append(_mismatch("an object", value, location))
            return {}
        before = f"{location}." if location else ""
        items = {}
        for name, each in value.items():
            if key is int and not re.fullmatch("[0-9]{1,9}", name):
                faults.append(Fault(before + name, " (expected a number as the key)"))
                continue
            items[key(name)] = reader(each, before + name, faults)
        return items

    return read


def _part(kind: type[Part]) -> _Reader:
    hints = get_type_hints(kind, include_extras=True)
    entries = [
        (each.name, hints[each.name], each.default is each.default_factory is MISSING)
        for each in fields(kind)
        if each.name != "json"
    ]
    readers = {name: _reader(hint) for name, hint, _ in entries}
    other = None if kind.others is Any else _reader(kind.others)

    def read(value: Any, location: str, faults: list[Fault]) -> Any:
        if not isinstance(value, dict):
            faults.append(_mismatch("an object", value, location))
            return None
        before = f"{location}." if location else ""
        values: dict[str, Any] = {}
        own: list[Fault] = []
        for name, hint, required in entries:
            if name in value and (required or value[name] is not None):
                values[name] = readers[name](value[name], before + name, own)
            elif required:
                own.append(Fault(before + name, missing=True))
                values[name] = _empty(hint)
        if other is not None:
            for name in value.keys() - readers.keys():
                other(value[name], before + name, own)
        faults += own
        return kind(json=value, **values) if all(fault.missing for fault in own) else None

    return read


def _empty(annotation: Any) -> Any:
    """Return the value of a missing key."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _empty(get_args(annotation)[0])
    if origin in (tuple, Sequence):
        return ()
    if origin is Mapping:
        return {}
    if annotation in (str, int):
        return annotation()
    is_part = isinstance(annotation, type) and issubclass(annotation, Part)
    return annotation.of({}) if is_part else None

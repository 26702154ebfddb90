"""Metadata stored in the same file as the weights: epoch and accuracy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch

from ..text import printable
from .standins import as_array

_MAX_LEVELS = 3  # levels of nested dicts that are searched, including the top level
_MAX_ENTRIES = 10_000  # entries of a dict that are searched
_MAX_NESTED = 100  # dicts in a dict that are searched
_PREFIX = r"((best|max|final|test|val|valid|validation|eval|dev)_)*"
_ACCURACY = re.compile(
    _PREFIX + r"(acc|accuracy|prec|precision|top)(_?@?_?1)?(_(test|val|valid|eval|best|top_?1))*",
    re.IGNORECASE,
)
# "top", "prec" and "precision" without a 1 may mean something else.
_UNAMBIGUOUS = re.compile(r"acc|1", re.IGNORECASE)


def as_number(value: Any) -> int | float | None:
    """Return a number of at most 2^53, or the only one in a tensor or NumPy array; else None."""
    if isinstance(value, torch.Tensor):
        value = torch.Tensor.detach(value)  # drops attributes that could hide its methods
        plain = value.layout == torch.strided and not value.is_meta and not value.is_complex()
        value = value.item() if plain and value.numel() == 1 else None
    elif (array := as_array(value)) is not None:
        value = array.item() if array.size == 1 else None
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 2**53:
        return None
    return value


def epoch(value: Any) -> int | None:
    """Return the integer ``epoch`` at the top level of a file's contents, or None."""
    number = as_number(dict.get(value, "epoch")) if isinstance(value, dict) else None
    return number if isinstance(number, int) else None


def claimed_accuracy(value: Any) -> dict[str, Any] | None:
    """Return the accuracy that a file claims, or None.

    ``key`` is the entry, such as ``metrics.val_acc``, and ``value`` is in [0, 1]. A number above 1
    is read as a percentage; numbers outside 0 to 100 are skipped. Of several accuracies, the first
    at the top level is returned, or else the first nested one.
    """
    for key, claim in _claims(value, "", _MAX_LEVELS):
        if claim is not None and 0 <= claim <= 100:
            return {"key": key, "value": claim / 100 if claim > 1 else float(claim)}
    return None


def _claims(value: Any, path: str, depth: int) -> Iterator[tuple[str, int | float | None]]:
    if not isinstance(value, dict) or depth == 0:
        return
    nested = []
    for key, entry in list(dict.items(value))[:_MAX_ENTRIES]:
        if not isinstance(key, str):
            continue
        entry_path = f"{path}.{printable(key)}" if path else printable(key)
        if isinstance(entry, dict):
            nested.append((entry_path, entry))
        elif _ACCURACY.fullmatch(re.sub(r"[/. -]", "_", key)) and _UNAMBIGUOUS.search(key):
            yield entry_path, as_number(entry)
    for entry_path, entry in nested[:_MAX_NESTED]:
        yield from _claims(entry, entry_path, depth - 1)

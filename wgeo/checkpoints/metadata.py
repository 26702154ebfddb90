"""What a file says of itself beside its weights: epoch and accuracy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch

from ..storage.files import printable
from .standins import as_array

_DEPTH = 3
_MOST = 10_000  # entries looked at
_SPLIT = r"((best|max|final|test|val|valid|validation|eval|dev)_)*"
_ACCURACY = re.compile(
    _SPLIT + r"(acc|accuracy|prec|precision|top)(_?@?_?1)?(_(test|val|valid|eval|best|top_?1))*",
    re.IGNORECASE,
)
_NEVER = re.compile(r"(best_|max_|val_|test_)*(top|prec|precision)", re.IGNORECASE)  # of what?


def number(value: Any) -> int | float | None:
    """Return a number, or the only number of a tensor or NumPy scalar; None if it is none."""
    if isinstance(value, torch.Tensor):
        value = torch.Tensor.detach(value)  # without attributes that could hide its methods
        plain = value.layout == torch.strided and not value.is_meta and not value.is_complex()
        value = value.item() if plain and value.numel() == 1 else None
    elif (array := as_array(value)) is not None:
        value = array.item() if array.size == 1 else None
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 2**53:
        return None
    return value


def epoch(value: Any) -> int | None:
    """Return the epoch that a file says it was saved at; None if it does not say."""
    found = number(dict.get(value, "epoch")) if isinstance(value, dict) else None
    return int(found) if isinstance(found, int) else None


def claimed_accuracy(value: Any) -> dict[str, Any] | None:
    """Return the accuracy that a file claims, and under which name; None if it claims none.

    Numbers above 1 are percent. Of several, the first that is not nested.

    Returns
    -------
    dict with ``key``, such as ``metrics.val_acc``, and ``value`` in [0, 1]
    """
    for key, claim in _claims(value, "", _DEPTH):
        if claim is not None and 0 <= claim <= 100:
            return {"key": key, "value": claim / 100 if claim > 1 else float(claim)}
    return None


def _claims(value: Any, path: str, depth: int) -> Iterator[tuple[str, int | float | None]]:
    if not isinstance(value, dict) or depth == 0:
        return
    inside = []
    for key, entry in list(dict.items(value))[:_MOST]:
        if not isinstance(key, str):
            continue
        where = f"{path}.{printable(key)}" if path else printable(key)
        if isinstance(entry, dict):
            inside.append((where, entry))
        elif _ACCURACY.fullmatch(re.sub(r"[/. -]", "_", key)) and not _NEVER.fullmatch(key):
            yield where, number(entry)
    for where, entry in inside[:100]:
        yield from _claims(entry, where, depth - 1)

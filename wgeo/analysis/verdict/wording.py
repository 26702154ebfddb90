"""Format numbers, lists, layers and segments for sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...storage.record import Optimality
from ...text import UNDEFINED, counted
from .sentence import THRESHOLDS

_MAX_DECIMALS = 9
_MAX_WITHOUT_EXPONENT = 1e7

OVER_IMAGES = ", 95 % interval over images"  # a note for `ranged`


def listed(parts: Sequence[str], last: str = "and") -> str:
    """Join ``["a", "b", "c"]`` as ``a, b and c``."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} {last} {parts[-1]}"


def rounded(value: float | None) -> str:
    """Format with three significant digits; from 1,000 to 10 million, as a whole number."""
    if value is None:
        return UNDEFINED
    return f"{value:,.0f}" if 1000 <= abs(value) < _MAX_WITHOUT_EXPONENT else f"{value:.3g}"


def decimals_of(low: float, high: float, minimum: int = 2) -> int:
    """Return the smallest number of decimals at which `low` and `high` differ."""
    for decimals in range(minimum, _MAX_DECIMALS):
        if round(low, decimals) != round(high, decimals):
            return decimals
    return minimum


def ranged(value: float | None, interval: Any, *, certified: bool = False, note: str = "") -> str:
    """Format a value with its interval, to the digit in which the ends differ, and a note.

    ``1.3384, (1.3381, 1.3392)`` -> ``1.338 (1.338 to 1.339)``. An interval of equal ends is left
    out; so is a certified interval narrower than 1e-4.
    """
    if interval is None or value is None:
        return rounded(value)
    low, high = interval
    if certified and abs(high - low) <= 1e-4:
        return f"{round(value, 4) + 0.0:.4f}"
    if not certified and low == high:
        return f"{value:.2f}" if 1 <= value < 10 else rounded(value)
    if high >= 1000 or 0 < high < 0.01:
        return f"{rounded(value)} ({rounded(low)} to {rounded(high)}{note})"
    # At least two significant digits of the value or the interval's width, whichever is larger.
    magnitude = max(abs(value), abs(high - low))
    d = decimals_of(low, high, max(2, 1 - math.floor(math.log10(magnitude))))
    return f"{value:z.{d}f} ({low:z.{d}f} to {high:z.{d}f}{note})"  # z: no negative zero


def start_of(layers: Sequence[str]) -> str:
    """Return the first layer's name, or a description if it is the output of a shortcut."""
    block, dot, child = layers[0].rpartition(".")
    is_shortcut = bool(dot) and child == "shortcut"
    return f"the input of {block}, mapped by its shortcut," if is_shortcut else layers[0]


def segment_ends(layers: Sequence[str]) -> str:
    """Return the beginning of a sentence, such as ``From stem to blocks.7``."""
    return f"From {start_of(layers)} to {layers[-1]}"


def ends(layers: Sequence[str]) -> list[str]:
    """Return the first and the last layer, for the evidence of a sentence."""
    return [layers[0], layers[-1]]


def spreads(row: Optimality) -> list[float]:
    """Return the defined spreads at the layers of a block or segment; [1] if there are none."""
    return [spread for spread in row.spread if spread is not None] or [1.0]


def least_motion(row: Optimality) -> float:
    """Return the relative displacement below which samples count as unmoved."""
    rounding = THRESHOLDS["above_rounding"] * (row.relative_rounding or 0.0)
    return max(THRESHOLDS["rounding"], rounding)


def unmoved(row: Optimality) -> bool:
    """Return whether a block or a segment moves its samples by no more than rounding error."""
    moved = row.relative_displacement
    return moved is not None and moved < least_motion(row)


def few_carrying(row: Optimality) -> str:
    """Return a text such as ``about 1 sample of 300 determines`` if they are few, else ""."""
    number, samples = row.effective_samples, row.independent
    if number is None or not samples:
        return ""
    minimum = max(THRESHOLDS["fewest_samples"], THRESHOLDS["carrying_share"] * samples)
    if number >= minimum:
        return ""
    number = round(number)
    verb = "determines" if number == 1 else "determine"
    return f"about {counted(number, 'sample')} of {samples:,} {verb}"

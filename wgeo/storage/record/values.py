"""Values with intervals, scores with bounds, and arrays of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, NamedTuple

from ..schema import Part, array

Number = float | None
Numbers = tuple[float | None, ...]
Matrix = tuple[Numbers, ...]
Plane = Annotated[Sequence[Any], array(None, None, 2)]  # (layers, classes or samples, 2)
Points = Annotated[Sequence[Any], array(None, None)]
Pair = Annotated[Sequence[float], array(2)]


class Interval(NamedTuple):
    """The ends of a 95 % interval."""

    low: float
    high: float


class Score(NamedTuple):
    """A score with its certified bounds."""

    value: float
    low: float
    high: float


class Measured(Part):
    """Values, some of which have intervals."""

    intervals: Mapping[str, Interval | None] = field(default_factory=dict)

    def interval(self, key: str) -> Interval | None:
        """Return the interval of a value; None if it has none."""
        return self.intervals.get(key)

"""The terminal phase of training, determined from a run's history.

A run may leave this phase, for example because weight decay shrinks weights before a batch norm
until a step is too large (Lobacheva et al. 2021, arXiv:2106.15739). The phase therefore begins when
the accuracy reaches 1 for the last time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

History = Sequence[Mapping[str, Any]]


def last_below(history: History) -> int | None:
    """Return the last evaluated epoch whose training accuracy was below 1, or None."""
    return max((epoch for epoch, accuracy in _evaluated(history) if accuracy < 1), default=None)


def terminal_epoch(history: History) -> int | None:
    """Return the first evaluated epoch after `last_below`, or None."""
    below = last_below(history)
    later = (epoch for epoch, _ in _evaluated(history) if below is None or epoch > below)
    return min(later, default=None)


def departure(history: History) -> str | None:
    """Return a warning if the training accuracy reached 1 and fell again, else None."""
    rows = _evaluated(history)
    first = next((epoch for epoch, accuracy in rows if accuracy == 1), math.inf)
    later = ((accuracy, epoch) for epoch, accuracy in rows if epoch > first)
    lowest, worst = min(later, default=(1, 0))
    if lowest == 1:
        return None
    again = terminal_epoch(history)
    now = (
        f"it ended at {rows[-1][1]:.4g}, outside the terminal phase"
        if again is None
        else f"the terminal phase is counted from epoch {again}, when it reached 1 again"
    )
    return (
        f"Training accuracy reached 1 in epoch {first} and fell below it again, to {lowest:.4g} in "
        f"epoch {worst}; {now}. To prevent this, use a smaller lr or, if weight decay shrinks "
        "convolutions before a batch norm, `decayed='unnormalized'`."
    )


def _evaluated(history: History) -> list[tuple[int, float]]:
    """Return every evaluated epoch and its training accuracy."""
    return [
        (row["epoch"], row["train_accuracy"])
        for row in history
        if row["train_accuracy"] is not None
    ]

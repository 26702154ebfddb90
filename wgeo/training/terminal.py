"""The terminal phase of training, determined from a run's history.

A run may leave this phase: with weight decay on convolutions followed by a batch norm, the gradient
grows as the weights shrink, until a step is too large and the accuracy collapses (Lobacheva et al.
2021, arXiv:2106.15739). The phase is therefore counted from the last time that the accuracy reached
1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

History = Iterable[Mapping[str, Any]]


def last_below(history: History) -> int | None:
    """Return the last evaluated epoch whose training accuracy was below 1, or None."""
    return max((epoch for epoch, accuracy in _evaluated(history) if accuracy < 1), default=None)


def terminal_epoch(history: History) -> int | None:
    """Return the first evaluated epoch from which on the training accuracy stayed at 1.

    Return None if the accuracy of the last evaluated epoch was below 1. Epochs without an
    evaluation are ignored.
    """
    rows = _evaluated(history)
    below = last_below(history)
    return min((epoch for epoch, _ in rows if below is None or epoch > below), default=None)


def departure(history: History) -> str | None:
    """Return a warning if the training accuracy reached 1 and fell again, else None."""
    rows = _evaluated(history)
    first = next((epoch for epoch, accuracy in rows if accuracy == 1), None)
    after = (
        [] if first is None else [(accuracy, epoch) for epoch, accuracy in rows if epoch > first]
    )
    if not after or min(after)[0] == 1:
        return None
    lowest, worst = min(after)
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
    """Return the epoch and the training accuracy of every evaluated epoch."""
    return [
        (row["epoch"], row["train_accuracy"])
        for row in history
        if row["train_accuracy"] is not None
    ]

"""The verdict: sentences about a network, with the evidence that supports them.

Every sentence is a function of a record's numbers, and its wording changes at `THRESHOLDS`. Only
this package composes sentences of a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...storage.record import Record
from .depth import alignment, separation_law
from .maps import blocks, optimality
from .one_sentence import compose
from .opening import reasons_to_doubt, silenced
from .outcome import against_network, collapse, next_steps, reference
from .paths import NO_COMMON_SPACE, straightness
from .sentence import THRESHOLDS, Sentence
from .several import series_headline

__all__ = [
    "NO_COMMON_SPACE",
    "THRESHOLDS",
    "Sentence",
    "against_network",
    "headline",
    "sentences",
    "series_headline",
    "text",
]


def sentences(record: Any) -> tuple[Sentence, ...]:
    """Return the sentences that a record's numbers support; reasons for doubt come first.

    Parameters
    ----------
    record : mapping, Analysis, Straightness or Collapse
        The record of an analysis. A `Straightness` supports only sentences about straightness and
        transport, a `Collapse` only those about collapse.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(40, 3))
    >>> traj = wgeo.Trajectory.from_arrays([x, 2 * x, 3 * x], np.arange(40) % 2)
    >>> for sentence in wgeo.analysis.sentences(wgeo.straightness(traj, bootstrap=0)):
    ...     print(sentence.claim, sentence.strength)
    straightness suggested
    optimality shown
    blocks undecided
    next undecided
    """
    record = Record.of(record)
    first = reasons_to_doubt(record)
    if silenced(record.trust):
        return tuple(first)
    body = [
        *straightness(record),
        *optimality(record),
        *blocks(record),
        *alignment(record),
        *reference(record),
        *collapse(record),
        *separation_law(record),
    ]
    return (*first, *body, *next_steps(record, body))


def headline(record: Any) -> Sentence:
    """Return a one-sentence summary of `sentences`: the path, collapse, and reasons for doubt."""
    record = Record.of(record)
    return compose(sentences(record), record.trust)


def text(verdict: Sequence[Mapping[str, Any] | Sentence]) -> str:
    """Return the text of a verdict: of sentences, or of their mappings in a record."""
    words = (s.words if isinstance(s, Sentence) else str(s.get("words", "")) for s in verdict)
    return " ".join(part for part in words if part)

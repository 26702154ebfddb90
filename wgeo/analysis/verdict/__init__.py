"""Every sentence that wgeo says about a network, each made from the evidence that supports it.

A sentence is a function of a record's numbers: `sentences` reads a record and returns them in the
order in which they are printed. They open with what speaks against trusting the rest. Nothing else
composes one, and `THRESHOLDS` holds every number at which the words change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .maps import blocks, optimality
from .opening import opening, silenced
from .outcome import against_network, collapse, next_steps, reference
from .paths import straightness
from .sentence import THRESHOLDS, Sentence

__all__ = ["THRESHOLDS", "Sentence", "against_network", "sentences", "text"]


def sentences(record: Any) -> tuple[Sentence, ...]:
    """Return what a record's numbers support saying, in the order in which it is printed.

    Parameters
    ----------
    record : mapping, Analysis, Straightness or Collapse
        As `wgeo.Analysis.record` holds it; a `Straightness` or `Collapse` gives the sentences on
        itself alone.
    """
    record = record.to_dict() if hasattr(record, "to_dict") else record
    trust = record.get("trust") or {}
    first = opening(trust)
    if silenced(trust):
        return tuple(first)
    body = [
        *straightness(record),
        *optimality(record),
        *blocks(record),
        *reference(record),
        *collapse(record),
    ]
    return (*first, *body, *next_steps(record, body))


def text(said: Sequence[Mapping[str, Any] | Sentence]) -> str:
    """Join the words of sentences, or of a record's ``verdict``."""
    words = (s.words if isinstance(s, Sentence) else str(s.get("words", "")) for s in said)
    return " ".join(part for part in words if part)

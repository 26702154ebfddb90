"""The verdict: sentences about a network, with the evidence that supports them.

Every sentence is a function of a record's numbers, and its wording changes at `THRESHOLDS`. Only
this package composes sentences of a verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ...storage.record import Record
from .classes import collapse, separation_law
from .headlines import compose, series_headline
from .maps import alignment, blocks, optimality
from .opening import reasons_to_doubt, silenced
from .paths import NO_COMMON_SPACE, against_network, reference, straightness
from .sentence import THRESHOLDS, Sentence, listed

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
    doubts = reasons_to_doubt(record)
    if silenced(record.trust):
        return tuple(doubts)
    body = [
        *straightness(record),
        *optimality(record),
        *blocks(record),
        *alignment(record),
        *reference(record),
        *collapse(record),
        *separation_law(record),
    ]
    return (*doubts, *body, *_next_steps(record, body))


def _next_steps(record: Record, body: Sequence[Sentence]) -> Iterator[Sentence]:
    open_claims = [c for c in _QUESTIONS if any(s.claim == c and _leaves_open(s) for s in body)]
    if not open_claims:
        return
    ways = ["more images"]
    if record.provenance.pool == "gap":
        ways.append("less pooling of the features (`pool='grid:2'`)")
    tested = any(block.brenier.points for block in record.blocks)
    if not tested:
        ways.append("the Jacobians (`brenier=16`)")
    undecided = sorted({s.claim for s in body if s.strength == "undecided"})
    questions = listed([_QUESTIONS[claim] for claim in open_claims])
    yield Sentence(
        "next",
        f"{questions[:1].upper()}{questions[1:]} could be decided by {listed(ways, 'or')}.",
        {"open": undecided, "questions": open_claims, "tested": tested},
        "undecided",
    )


_QUESTIONS = {  # claims that more evidence could decide
    "straightness": "whether the path is straight",
    "optimality": "from which layer the map to the last layer is optimal",
    "blocks": "whether the undecided blocks are optimal maps",
}


def _leaves_open(sentence: Sentence) -> bool:
    """Return whether more evidence could decide what a sentence leaves undecided."""
    evidence = sentence.evidence
    if sentence.claim == "straightness":
        return bool(evidence.get("turns_unseen"))
    parts = any(b["kind"] == "undecided" for b in evidence.get("blocks", []))
    return sentence.strength == "undecided" or bool(evidence.get("later_undecided")) or parts


def headline(record: Any) -> Sentence:
    """Return a one-sentence summary of `sentences`: the path, collapse, and reasons for doubt."""
    record = Record.of(record)
    return compose(sentences(record), record.trust)


def text(verdict: Iterable[Any]) -> str:
    """Return the sentences of a verdict as one text.

    `verdict` is the result of `sentences`, or the ``verdict`` of a `Record`.
    """
    return " ".join(sentence.words for sentence in verdict if sentence.words)

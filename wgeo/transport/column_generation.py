"""Solve on few pairs, test on all, add the pairs at fault, until none is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ..runtime import processes
from ..runtime.progress import track
from ..runtime.threads import raise_if_interrupted
from .arcs import ROUNDING, Arcs, Labels
from .geometry import Geometry
from .all_pairs import Violations, nearest, find_violations

_CANDIDATES = 8  # arcs a point contributes to begin with
_MOST_ROUNDS = 100
_FEW = 0.7  # of the rows: fewer are tested apart before all are
_LONG = 10**9  # pairs from which progress is worth showing


@dataclass(frozen=True, eq=False)
class Solution:
    """A coupling, labels, and what a scan proved of them.

    Attributes
    ----------
    coupling : ndarray of int, (n,), or sparse array (n, m)
        In the costs' order.
    labels : Labels
    scan : Scan
        ``(p, q - scan.loss)`` is feasible.
    arcs, rounds : int
        How many pairs the sparse problem ended with, and how often it was solved.
    """

    coupling: Any
    labels: Labels
    find_violations: Violations
    arcs: int
    rounds: int


def refine(
    geometry: Geometry,
    arcs: Arcs,
    labels: Labels,
    solve: Callable[[Labels], tuple[Any, Labels, float]],
) -> Solution:
    """Call ``solve(labels)`` while `arcs` grow, until its labels satisfy all pairs.

    It returns a coupling, labels near those it is given and feasible on the arcs, and the slack
    that it takes for none. (Those that a sparse solver ends with by itself leave points of few arcs
    loose, and take tens of rounds.) One process solves; all test.
    """
    rounds: Iterator[int] = count(1)
    if geometry.x.n * geometry.y.n >= _LONG:
        rounds = track(rounds, "optimal coupling: solving, testing all pairs")
    while True:
        done = next(rounds)
        raise_if_interrupted()
        before = labels.p
        coupling, labels, tolerance = processes.on_rank_zero(partial(solve, labels))
        # Where p did not fall a pair can only have become worse by what q rose, which is little.
        fell = np.flatnonzero(labels.p < before)
        if 0 < len(fell) < _FEW * geometry.x.n:
            threshold = max(tolerance, negligible(labels))
            found = find_violations(geometry, labels.p, labels.q, threshold, rows=fell)
            if arcs.add(found.i, found.j) > 0 and done < _MOST_ROUNDS:
                continue
        found = verify(geometry, labels, tolerance)
        if arcs.add(found.i, found.j) == 0 or done >= _MOST_ROUNDS:
            return Solution(coupling, labels, found, len(arcs), done)


def verify(geometry: Geometry, labels: Labels, tolerance: float) -> Violations:
    """Test labels on all pairs; in float64 where float32 finds no fault but proves too little.

    Slack below zero by less than `tolerance`, or than rounding, is no fault; it counts as loss.
    """
    threshold = max(tolerance, negligible(labels))
    found = find_violations(geometry, labels.p, labels.q, threshold)
    if len(found.i) == 0 and found.open.any():
        found = find_violations(geometry.double_precision, labels.p, labels.q, threshold, thorough=True)
    return found


def add_nearest(geometry: Geometry, arcs: Arcs, f: Float[torch.Tensor, " n"]) -> Labels:
    """Add each point's nearest by slack under potentials f; return labels made of f."""
    g, i, j = nearest(geometry, geometry.y, geometry.x, -f, _CANDIDATES)
    arcs.add(i, j)
    f, j, i = nearest(geometry, geometry.x, geometry.y, -g, _CANDIDATES)
    arcs.add(i, j)
    return Labels(-f.cpu().numpy(), g.cpu().numpy())


def negligible(labels: Labels) -> float:
    """Slack below zero by less than this is rounding."""
    return ROUNDING * float(abs(labels.p).max() + abs(labels.q).max())

"""An optimal plan between two clouds, as a minimum-cost flow: a start, then column generation.

Each pair is a variable of the linear program. It is violated if f_i + g_j > c_ij, that is, if its
slack is negative. The problem is solved on few pairs, all pairs are tested, those that are violated
are added, and it is solved again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array

from ..runtime import processes
from ..runtime.progress import track
from ..runtime.threads import raise_if_interrupted
from .all_pairs import Violations, c_transform, find_violations, nearest, slack_error
from .arcs import ROUNDING, Arcs, Potentials, dense_simplex, network_simplex, solve_coarse
from .geometry import Geometry
from .tiles import reduce_tiles

_ALL_PAIRS = 1 << 16  # problems with at most this many pairs are solved on all of them
# A pairing is not a useful start if more than this fraction of the points y has a violated pair
_POOR_START = 0.5
_SAMPLE = 32  # number of points y for which this is tested
# If the nearest points of all y include at least this fraction of the points x, the search for the
# nearest points is repeated in float64.
_NEARLY_PERMUTATION = 0.9
_DUAL_SAMPLE = 256  # number of points y on which two potentials f are compared
_TOLERANCE = 2.0**-36  # slack below this fraction of the cost counts as zero
_PATIENCE = 10  # rounds after which one dense problem is solved, if many new pairs were added
_DENSE_BYTES = 40  # memory of the dense problem, per pair
_MAX_NOISE = 2.0**-28  # largest rounding error of the potentials (noise), relative to the cost
# The sparse solver clips slacks at this multiple of the largest violation, or of the noise, which
# makes its rounding errors smaller.
_LIMIT_FACTOR = 2.0**10
_CANDIDATES = 8  # pairs that each point contributes at first
_MAX_ROUNDS = 100
_PAIRS_PER_ARC = 100  # number of pairs tested in the time that the sparse solver takes per arc
_MAX_UNDECIDED = 0.5  # fraction of undecided points y above which float32 is too coarse
_NEAR = 0.25  # pairs of small slack that a test adds, as a fraction of the arcs
_DENSITY_SAMPLE = 32  # number of points y whose slacks show how many slacks are small
_FEW_COLUMNS = 0.5  # if more than this fraction of points y must be tested, all are
_RESOLVED = 4  # slacks above this multiple of the products' error are resolved
_PROGRESS_FROM = 10**9  # number of pairs from which progress is shown


@dataclass(frozen=True, eq=False)
class Solution:
    """A coupling, potentials, and the constraints that the potentials violate."""

    plan: coo_array  # (n, m), between the masses of the geometry, in its order
    potentials: Potentials
    violations: Violations
    arcs: int  # number of pairs in the last sparse problem
    rounds: int  # number of problems solved

    @property
    def feasible(self) -> Potentials:
        """Feasible potentials (f, g - excess)."""
        return Potentials(self.potentials.f, self.potentials.g - self.violations.excess)


def solve_flow(geometry: Geometry, start: Float[np.ndarray, " n"] | None = None) -> Solution:
    """Find an optimal plan between the clouds' masses, which must all be positive.

    The clouds' pairing, if they have one, is tested for optimality first. If it is not nearly
    optimal, small problems are solved on all pairs, while in large problems the pairing of nearest
    neighbors is tested. If that is not nearly optimal either, `_start` adds pairs of a coarse
    problem and every point's pairs of least slack. Column generation begins with these pairs, those
    of the tested pairings, and the violated pairs that the tests found.

    With `start`, a nearly optimal potential f, the pairing of nearest neighbors is not tested.
    """
    n, m = geometry.x.n, geometry.y.n
    masses = geometry.masses
    arcs = Arcs(geometry)
    f = geometry.translation_potential()
    paired = None
    if geometry.clouds.pairing is not None:
        paired = _test_pairing(geometry, arcs, np.arange(n), f)
    if paired is None and n * m <= _ALL_PAIRS:
        i, j = np.divmod(np.arange(n * m), m)
        arcs.add(i, j)
        potentials = Potentials.zeros(n, m)
    else:
        if paired is None and start is None:
            paired = _nearest_pairing(geometry, arcs, f)
        if paired is None:
            potentials = _start(geometry, arcs, f, start)
        else:
            solution, optimal = paired
            if optimal:
                return solution
            potentials = solution.potentials

    tolerance, size, rounds = np.inf, len(arcs), count()

    def solve(potentials: Potentials) -> tuple[coo_array, Potentials, float]:
        nonlocal tolerance, size
        grown, size = len(arcs) - size, len(arcs)
        fits = _DENSE_BYTES * n * m <= geometry.memory
        if fits and next(rounds) == _PATIENCE and grown > m:
            plan, potentials, noise = dense_simplex(geometry.double_precision, *masses)
        else:
            limit = np.inf  # in the first round
            if tolerance < np.inf:
                limit = max(tolerance, -_LIMIT_FACTOR * float(arcs.slack(potentials).min()))
            plan, potentials, noise = network_simplex(arcs, potentials, *masses, limit)
        cost = float(plan.data @ geometry.pair_costs(plan.row, plan.col) / plan.data.sum())
        if noise > _MAX_NOISE * cost:  # keep the plan, but compute more accurate potentials
            _, potentials, noise = network_simplex(arcs, potentials, *masses, _LIMIT_FACTOR * noise)
        tolerance = max(_TOLERANCE * cost, noise)
        return plan, potentials, tolerance

    return generate_columns(geometry, arcs, potentials, solve)


def pairs_well(geometry: Geometry) -> bool:
    """Return whether there is a pairing, and a sample of points y shows it to be a useful start."""
    if geometry.clouds.pairing is None:
        return False
    i = np.arange(geometry.x.n)
    return _mostly_feasible(
        geometry, _tight_potentials(geometry, i, geometry.translation_potential())[0]
    )


def _tight_potentials(
    geometry: Geometry, i: Int[np.ndarray, " n"], f: Float[np.ndarray, " n"]
) -> tuple[Potentials, Float[np.ndarray, " n"]]:
    """Return potentials with zero slack for the pairs (i[j], j), and the costs of these pairs."""
    cost = geometry.pair_costs(i, np.arange(len(i)))
    return Potentials(f, cost - f[i]), cost


def _mostly_feasible(geometry: Geometry, potentials: Potentials) -> bool:
    """Return whether at least half of the points y in a sample have no violated pair."""
    sample = geometry.y.take(np.arange(min(_SAMPLE, geometry.y.n)))
    f, g = (torch.from_numpy(z).to(sample.norms) for z in (potentials.f, potentials.g[:_SAMPLE]))
    violated = c_transform(geometry, sample, geometry.x, f) + sample.error(sample.norms) < g
    return processes.on_rank_zero(lambda: float(violated.double().mean())) <= _POOR_START


def _test_pairing(
    geometry: Geometry, arcs: Arcs, i: Int[np.ndarray, " n"], f: Float[np.ndarray, " n"]
) -> tuple[Solution, bool] | None:
    """Return the coupling of the pairs (i[j], j), and whether its potentials prove it optimal.

    Its potentials are f and the g for which these pairs have zero slack. If they are feasible, to a
    tolerance, the coupling is optimal. Return None if many points y have a violated pair.
    """
    j = np.arange(len(i))
    potentials, cost = _tight_potentials(geometry, i, f)
    arcs.add(i, j)
    if not _mostly_feasible(geometry, potentials):
        return None
    violations, new = verify(geometry, arcs, potentials, _TOLERANCE * float(cost.mean()))
    if np.count_nonzero(np.bincount(violations.j)) > _POOR_START * len(j):
        return None
    plan = coo_array((geometry.masses[1], (i, j)), shape=(geometry.x.n, geometry.y.n))
    return Solution(plan, potentials, violations, len(arcs), 0), new == 0


def _nearest_pairing(
    geometry: Geometry, arcs: Arcs, f: Float[np.ndarray, " n"]
) -> tuple[Solution, bool] | None:
    """Test the pairing of each y with the x of least c_ij - f_i, if that is a permutation.

    If f is the potential of a translation, this x is nearest to y after the translation.
    """
    a, b = geometry.masses
    if len(a) != len(b):
        return None
    start = torch.from_numpy(f).to(geometry.x.norms)
    for costs in (geometry, geometry.double_precision):
        _, i, j = nearest(costs, costs.y, costs.x, start, 1)
        carried = np.bincount(i, b[j], len(a))
        if np.array_equal(carried, a):
            return _test_pairing(costs, arcs, i[np.argsort(j)], f)
        if np.count_nonzero(carried) < _NEARLY_PERMUTATION * len(a):
            return None
    return None


def _start(
    geometry: Geometry,
    arcs: Arcs,
    f: Float[np.ndarray, " n"],
    known: Float[np.ndarray, " n"] | None,
) -> Potentials:
    """Add pairs on which a feasible plan exists, and each point's pairs of least slack.

    Return potentials computed from `known`. If it is None, they are computed from f or from the
    potential of the coarse problem, whichever has the larger dual objective.
    """
    i, j, coarse = processes.on_rank_zero(lambda: solve_coarse(geometry, *geometry.masses))
    arcs.add(i, j)
    candidates = (f, coarse) if known is None else (known,)
    starts = [torch.from_numpy(z).to(geometry.x.norms) for z in candidates]
    values = [_dual_value(geometry, start) for start in starts]
    return add_nearest(geometry, arcs, starts[int(np.argmax(values))])


def _dual_value(geometry: Geometry, f: Float[torch.Tensor, " n"]) -> float:
    """Estimate the dual objective of f and its c-transform from a sample of the points y."""
    head = geometry.y.head(_DUAL_SAMPLE)
    a, b = (torch.from_numpy(mass).to(f) for mass in geometry.masses)
    g, b = c_transform(geometry, head, geometry.x, f), b[: head.n]
    value = float(f @ a / a.sum() + g @ b / b.sum())
    return processes.on_rank_zero(lambda: value)


def generate_columns(
    geometry: Geometry,
    arcs: Arcs,
    potentials: Potentials,
    solve: Callable[[Potentials], tuple[coo_array, Potentials, float]],
) -> Solution:
    """Call ``solve(potentials)`` on more and more `arcs` until no pair is violated.

    `solve` returns a plan, potentials that are feasible on the arcs and close to those given, and
    the slack that counts as zero. (The simplex's own potentials are arbitrary at points with few
    arcs, and would need tens of rounds.) One process solves, and all processes test pairs. After
    `_MAX_ROUNDS` rounds, pairs may remain violated.
    """
    rounds: Iterator[int] = count(1)
    # A lower bound on the slack of the pairs of each point y that are not arcs.
    least_slack = np.full(geometry.y.n, -np.inf)
    if geometry.x.n * geometry.y.n >= _PROGRESS_FROM:
        rounds = track(rounds, "optimal coupling: solving, testing all pairs")
    while True:
        number = next(rounds)
        raise_if_interrupted()
        before = potentials
        plan, potentials, tolerance = processes.on_rank_zero(partial(solve, potentials))
        arcs.add(plan.row, plan.col)  # new if `solve` used pairs that are not arcs
        last = number >= _MAX_ROUNDS
        least_slack -= _largest_fall(before, potentials)
        untested = np.flatnonzero(least_slack < 0)
        if len(untested) <= _FEW_COLUMNS * geometry.y.n:
            violations, new = _verify_columns(
                geometry, arcs, potentials, tolerance, untested, least_slack
            )
            if not last and new > 0:
                continue
            if new == 0 and not violations.undecided.any():
                return Solution(plan, potentials, violations, len(arcs), number)
        # Rows whose f rose are tested first. In other rows, slacks fall only as much as g rises,
        # which is little.
        raised = np.flatnonzero(potentials.f > before.f)
        n, m = arcs.shape
        if 0 < len(raised) * m < n * m - _PAIRS_PER_ARC * len(arcs):
            threshold = max(tolerance, negligible(potentials))
            violations = find_violations(geometry, potentials, threshold, rows=raised)
            if arcs.add(violations.i, violations.j) > 0 and not last:
                continue
        violations, new = verify(geometry, arcs, potentials, tolerance, complete=last)
        least_slack = _bounds(violations.margin)
        if violations.dtype is torch.float64:  # float32 would again be too coarse
            geometry = geometry.double_precision
        if new == 0 or last:
            return Solution(plan, potentials, violations, len(arcs), number)


def verify(
    geometry: Geometry,
    arcs: Arcs,
    potentials: Potentials,
    tolerance: float,
    complete: bool = False,
) -> tuple[Violations, int]:
    """Test all pairs, add violated ones to `arcs`, and return the violations and how many are new.

    A pair whose slack is negative by less than `tolerance`, or by less than the rounding error, is
    not added, but counts as excess.

    Points y with very many pairs of nearly zero slack are undecided. If no new pair was found, or
    the result must be `complete`, all pairs are then tested again with products in float64, and
    thoroughly if an excess above the threshold remains. The test in float64 is also made if most
    points are undecided and few new pairs were found.
    """
    threshold = max(tolerance, negligible(potentials))
    precise = geometry.double_precision
    violations, new = _test(geometry, arcs, potentials, threshold)
    undecided = violations.undecided.mean()
    if undecided > 0 and (
        new == 0 or complete or (undecided > _MAX_UNDECIDED and new < geometry.y.n)
    ):
        if geometry.dtype is torch.float32:
            violations = find_violations(precise, potentials, threshold)
            new += arcs.add(violations.i, violations.j)
        if violations.excess.max() > threshold and (new == 0 or complete):
            violations = find_violations(precise, potentials, threshold, thorough=True)
            new += arcs.add(violations.i, violations.j)
    return violations, new


def _verify_columns(
    geometry: Geometry,
    arcs: Arcs,
    potentials: Potentials,
    tolerance: float,
    columns: Int[np.ndarray, " c"],
    least_slack: Float[np.ndarray, " m"],
) -> tuple[Violations, int]:
    """Test the pairs of some points y, add violated ones, and return the same as `verify`.

    For the other points y, all pairs except the arcs are known to have no negative slack. The
    bounds `least_slack` of the tested points are updated.
    """
    threshold = max(tolerance, negligible(potentials))
    violations, new = _test(geometry, arcs, potentials, threshold, columns)
    least_slack[columns] = _bounds(violations.margin[columns])
    if new > 0:  # the potentials will change
        return violations, new
    excess = violations.excess.copy()
    f, g = potentials.f[arcs.i], potentials.g[arcs.j]
    error = slack_error(geometry, arcs.cost, f, g)
    np.maximum.at(excess, arcs.j, error - arcs.slack(potentials))
    return replace(violations, excess=excess), new


def _test(
    geometry: Geometry,
    arcs: Arcs,
    potentials: Potentials,
    threshold: float,
    columns: Int[np.ndarray, " c"] | None = None,
) -> tuple[Violations, int]:
    """Test pairs once, add violated pairs and those of small slack; count new violated pairs."""
    margin = _margin(geometry, arcs, potentials)
    violations = find_violations(geometry, potentials, threshold, columns=columns, margin=margin)
    new = arcs.add(violations.i, violations.j)
    arcs.add(violations.near_i, violations.near_j)
    return violations, new


def _bounds(margin: Float[np.ndarray, " c"]) -> Float[np.ndarray, " c"]:
    """Return lower bounds on the slack of pairs that are not arcs after a test."""
    return np.where(margin > 0, margin, -np.inf)


def _largest_fall(before: Potentials, after: Potentials) -> Float[np.ndarray, " m"]:
    """Return a bound on how much the slack of any pair of each point y has fallen."""
    rise = max(float((after.f - before.f).max()), 0.0)
    return rise + (after.g - before.g) + negligible(before) + negligible(after)


def _margin(geometry: Geometry, arcs: Arcs, potentials: Potentials) -> float:
    """Return a slack below which there are about `_NEAR` times as many pairs as arcs.

    Potentials change less and less from round to round. Arcs of small slack therefore save rounds,
    and show that most columns need not be tested again. The margin is 0 (no such arcs) if there are
    few arcs, if points are screened, or if the products cannot resolve it.
    """
    x, y = geometry.x, geometry.y
    sample = y.take(np.arange(min(_DENSITY_SAMPLE, y.n)))
    count = int(_NEAR * len(arcs) * sample.n / y.n)
    if (
        count <= sample.n
        or len(arcs) == x.n * y.n
        or processes.on_rank_zero(lambda: geometry.screens)
    ):
        return 0.0
    f, g = (torch.from_numpy(z).to(x.norms) for z in (potentials.f, potentials.g[: sample.n]))
    shift = (sample.norms - g)[:, None]

    def part(rows: slice, block: torch.Tensor) -> tuple[torch.Tensor]:
        return (block[:, : x.n] + shift[rows],)

    slack = reduce_tiles(geometry.tiles(part, sample, x, x.norms - f), sample.n)[0].flatten()
    value = float(slack.topk(min(count, len(slack)), largest=False, sorted=False).values.max())
    error = float(sample.error(sample.norms).max() + x.error(x.norms - f).max())
    return processes.on_rank_zero(lambda: value if value > _RESOLVED * error else 0.0)


def add_nearest(geometry: Geometry, arcs: Arcs, f: Float[torch.Tensor, " n"]) -> Potentials:
    """Add each point's pairs of least slack; return the c-transform g of f, and that of g."""
    g, i, j = nearest(geometry, geometry.y, geometry.x, f, _CANDIDATES)
    arcs.add(i, j)
    f, j, i = nearest(geometry, geometry.x, geometry.y, g, _CANDIDATES)
    arcs.add(i, j)
    return Potentials(f.cpu().numpy(), g.cpu().numpy())


def negligible(potentials: Potentials) -> float:
    """Return a bound on the negative slack that rounding alone can cause."""
    return ROUNDING * float(abs(potentials.f).max() + abs(potentials.g).max())

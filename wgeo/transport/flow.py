"""An optimal plan between two clouds, as a minimum-cost flow: a start, then column generation."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array

from ..runtime import processes
from .all_pairs import c_transform, nearest
from .arcs import Arcs, Potentials, dense_simplex, network_simplex, run_simplex
from .column_generation import Solution, add_nearest, generate_columns, verify
from .geometry import Geometry
from .plans import expand
from .tiles import map_tiles, products, reduce_tiles

_ALL_PAIRS = 1 << 16  # problems with at most this many pairs are solved on all of them
# A pairing is not a useful start if more than this fraction of the points y has a violated pair
_POOR_START = 0.5
_SAMPLE = 32  # number of points y for which this is tested
# If at least this fraction of the points x is nearest to some y, float64 is tried as well
_NEARLY_PERMUTATION = 0.9
_DUAL_SAMPLE = 256  # number of points y on which two potentials f are compared
_TOLERANCE = 2.0**-36  # slack below this fraction of the cost counts as zero
_PATIENCE = 10  # rounds after which one dense problem is solved, if many new pairs were added
_DENSE_BYTES = 40  # memory of the dense problem, per pair
_MAX_NOISE = 2.0**-28  # largest rounding error of the potentials (noise), relative to the cost
# The sparse solver clips slacks at this multiple of the largest violation, or of the noise, which
# makes its rounding errors smaller.
_LIMIT_FACTOR = 2.0**10
_REPRESENTATIVES = 256  # of each cloud in the coarse problem, at most
_POINTS_EACH = 8  # number of points per representative, at least


def solve_flow(geometry: Geometry, start: Float[np.ndarray, " n"] | None = None) -> Solution:
    """Find an optimal plan between the clouds' masses, which must all be positive.

    The clouds' pairing, if they have one, is tested for optimality first. If it is not nearly
    optimal, small problems are solved on all pairs, while in large problems the pairing of nearest
    neighbors is tested. If that is not nearly optimal either, `_start` adds pairs of a coarse
    problem and every point's pairs of least slack. Column generation begins with these pairs, those
    of the tested pairings, and the violated pairs that the tests found.

    `start` is a nearly optimal potential f. Nearest neighbors are then not tested.
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

    tolerance, size, rounds = np.inf, len(arcs), itertools.count()

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
    """Return whether there is a pairing that, by a sample of points y, is a useful start."""
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

    Return potentials computed from `known`, or without it from f or the potential of the coarse
    problem, whichever has the larger dual objective.
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


def solve_coarse(
    geometry: Geometry, a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"], Float[np.ndarray, " n"]]:
    """Solve between a few representatives of both clouds.

    Return pairs (i, j) on which a feasible plan exists, and a potential f of the first cloud. Each
    point belongs to its nearest representative, of either cloud, and the coarse plan is expanded to
    the points. A solver that begins with nearest neighbors instead needs hundreds of small steps if
    the clouds are long and thin.
    """
    x, y = geometry.x.points[: len(a)], geometry.y.points[: len(b)]
    count = max(1, min(_REPRESENTATIVES, len(a) // _POINTS_EACH, len(b) // _POINTS_EACH))
    centers = torch.cat([x[:count], y[:count]])
    cell_x, cell_y = (_nearest_center(geometry, z, centers, None)[1] for z in (x, y))
    k = len(centers)
    mass_x, mass_y = np.bincount(cell_x, a, k), np.bincount(cell_y, b, k)
    rows, columns = np.flatnonzero(mass_x), np.flatnonzero(mass_y)
    cost = torch.cdist(centers[rows].double(), centers[columns].double()).square().cpu().numpy()
    plan, _, v = run_simplex(mass_x[rows], mass_y[columns], cost / (cost.max() or 1.0))
    i, j, _ = expand(rows[plan.row], columns[plan.col], plan.data, (cell_x, a), (cell_y, b))
    f, _ = _nearest_center(geometry, x, centers[columns], torch.from_numpy(v * cost.max()))
    return i, j, f


def _nearest_center(
    geometry: Geometry,
    points: Float[torch.Tensor, "n d"],
    centers: Float[torch.Tensor, "k d"],
    potentials: Float[torch.Tensor, " k"] | None,
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Return ``min_k ||x_i - z_k||^2 - v_k`` and its k for every point x_i; v is 0 if None."""
    bias = centers.square().sum(1)
    if potentials is not None:
        bias = bias - potentials.to(bias)

    def fill(rows: slice, out: torch.Tensor) -> torch.Tensor:
        geometry.visits["features"] += len(out) * centers.numel()
        return products(points[rows], centers, bias, -2.0, out)

    def part(rows: slice, tile: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, indices = tile.min(1)
        return values.double() + points[rows].double().square().sum(1), indices

    tiles = map_tiles(part, fill, (len(points), len(centers)), bias)
    values, indices = reduce_tiles(tiles, len(points), by_row=2)
    return values.cpu().numpy(), indices.cpu().numpy()

"""Clouds with weights or of different sizes: an optimal plan and the potentials that prove it."""

from __future__ import annotations

import numpy as np
import ot
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array, csr_array

from ..errors import ConvergenceError
from ..runtime.threads import interruptible
from .arcs import Arcs, Potentials, shortest_path_labels
from .column_generation import Solution, add_nearest, generate_columns, negligible
from .geometry import Geometry
from .line import northwest_corner
from .multiscale import estimate_potentials

_ALL_PAIRS = 1 << 16  # problems with at most this many pairs are solved on all of them
_LEAST_COST = 2.0**-10  # fraction of the scale: below it the scale was a poor estimate of the cost
_SIMPLEX_ZERO = 2.0**-36  # fraction of the scale that the network simplex treats as zero


def solve_flow(geometry: Geometry) -> Solution:
    """Find an optimal plan between the clouds' weights, all positive.

    Each point contributes its nearest under estimated potentials (`multiscale`); the plan that is
    monotone along the first coordinate ensures that the arcs can carry all mass.
    """
    n, m = geometry.x.n, geometry.y.n
    a, b = geometry.weights
    arcs = Arcs(geometry)
    if n * m <= _ALL_PAIRS:
        arcs.add(np.repeat(np.arange(n), m), np.tile(np.arange(m), n))
        potentials = Potentials.zeros(n, m)
        scale = float(arcs.cost.mean())
    else:
        aw, bw = (torch.from_numpy(w).to(geometry.x.norms) for w in (a, b))
        scale = float(aw @ geometry.x.norms + bw @ geometry.y.norms)
        f = estimate_potentials(geometry, scale, aw, bw)
        arcs.add(*monotone_pairs(geometry, a, b))
        potentials = add_nearest(geometry, arcs, f)
        scale = max(float(b @ potentials.g + a @ potentials.f), _LEAST_COST * scale)

    def solve(potentials: Potentials) -> tuple[csr_array, Potentials, float]:
        nonlocal scale
        while True:
            plan, potentials, cost = network_simplex(arcs, potentials, a, b, scale or 1.0)
            if cost >= _LEAST_COST * scale or cost == 0:
                return plan, potentials, _SIMPLEX_ZERO * scale
            scale = cost  # far less than estimated: what seemed negligible may no longer be

    return generate_columns(geometry, arcs, potentials, solve)


def network_simplex(
    arcs: Arcs,
    potentials: Potentials,
    a: Float[np.ndarray, " n"],
    b: Float[np.ndarray, " m"],
    scale: float,
) -> tuple[csr_array, Potentials, float]:
    """Return an optimal plan on the arcs, potentials that prove it, and its cost.

    POT's network simplex runs on the slacks, which makes good potentials good first pivots, and in
    units of `scale`, since its tolerance is absolute.
    """
    slack = arcs.slack(potentials)
    graph = coo_array((slack / scale, (arcs.i, arcs.j)), shape=arcs.shape)
    zeros = np.zeros(arcs.shape[0]), np.zeros(arcs.shape[1])

    def simplex() -> tuple[coo_array, dict]:
        return ot.emd(a, b, graph, numItermax=10**9, log=True, potentials_init=zeros)

    plan, log = interruptible(simplex)
    if log["result_code"] != 1:
        raise ConvergenceError(
            f"The network simplex ended early: {log['warning']}. Are weights many orders of "
            "magnitude apart? Drop the smallest, or use wgeo.Sinkhorn()."
        )
    plan = plan.tocoo()
    positive = plan.data > 0
    mass, i, j = plan.data[positive], plan.row[positive], plan.col[positive]
    used = arcs.index_of(i, j)
    tolerance = max(_SIMPLEX_ZERO * scale, negligible(potentials))
    change = shortest_path_labels(arcs, slack, used, tolerance)
    potentials = Potentials(potentials.f + change.f, potentials.g + change.g)
    return csr_array((mass, (i, j)), shape=arcs.shape), potentials, float(mass @ arcs.cost[used])


def monotone_pairs(
    geometry: Geometry, a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Return the pairs of the plan that is monotone along the first coordinate."""
    x, y = (
        np.argsort(cloud.points[: cloud.n, 0].cpu().numpy()) for cloud in (geometry.x, geometry.y)
    )
    i, j, _ = northwest_corner(a[x], b[y])
    return x[i], y[j]

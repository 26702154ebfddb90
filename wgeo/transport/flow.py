"""Clouds with weights or of different sizes: an optimal plan and the labels that prove it."""

from __future__ import annotations

import numpy as np
import ot
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array, csr_array

from ..errors import ConvergenceError
from ..runtime.threads import interruptible
from .arcs import Arcs, Labels, shortest_path_labels
from .geometry import Geometry
from .line import northwest_corner
from .multiscale import estimate_potentials
from .column_generation import Solution, add_nearest, negligible, refine

_FEW = 1 << 16  # pairs that are all taken at once
_TRUST = 2.0**-10  # of a bound on the cost: an estimate below it is corrected
_SIMPLEX = 2.0**-36  # of the scale: what the network simplex takes for zero

def solve_flow(geometry: Geometry, start: Float[np.ndarray, " n"] | None = None) -> Solution:
    """Optimal plan between the pair's weights, all positive.

    Each point names its nearest under potentials guessed anew (`multiscale`) or given; the plan
    that is monotone along the first coordinate makes sure that the arcs carry all mass.
    """
    n, m = geometry.x.n, geometry.y.n
    a, b = geometry.weights
    arcs = Arcs(geometry)
    if n * m <= _FEW:
        arcs.add(np.repeat(np.arange(n), m), np.tile(np.arange(m), n))
        labels = Labels(np.zeros(n), np.zeros(m))
        scale = float(arcs.cost.mean())
    else:
        aw, bw = (torch.from_numpy(w).to(geometry.x.norms) for w in (a, b))
        scale = float(aw @ geometry.x.norms + bw @ geometry.y.norms)
        f = estimate_potentials(geometry, scale, aw, bw) if start is None else torch.from_numpy(-start).to(aw)
        arcs.add(*monotone(geometry, a, b))
        labels = add_nearest(geometry, arcs, f)
        scale = max(float(b @ labels.q - a @ labels.p), _TRUST * scale)

    def solve(labels: Labels) -> tuple[csr_array, Labels, float]:
        nonlocal scale
        while True:
            plan, labels, cost = transport(arcs, labels, a, b, scale or 1.0)
            if cost >= _TRUST * scale or cost == 0:
                return plan, labels, _SIMPLEX * scale
            scale = cost  # far less than thought: what was negligible beside it no longer is

    return refine(geometry, arcs, labels, solve)


def transport(
    arcs: Arcs,
    labels: Labels,
    a: Float[np.ndarray, " n"],
    b: Float[np.ndarray, " m"],
    scale: float,
) -> tuple[csr_array, Labels, float]:
    """Optimal plan on the arcs, labels near those given that prove it, and its cost.

    POT's network simplex on the slacks, in units of `scale` since its tolerance is absolute: good
    labels make good first pivots.
    """
    slack = arcs.slack(labels)
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
    carries = plan.data > 0
    mass, i, j = plan.data[carries], plan.row[carries], plan.col[carries]
    used = arcs.at(i, j)
    change = shortest_path_labels(arcs, slack, used, max(_SIMPLEX * scale, negligible(labels)))
    labels = Labels(labels.p + change.p, labels.q + change.q)
    return csr_array((mass, (i, j)), shape=arcs.shape), labels, float(mass @ arcs.cost[used])


def monotone(
    geometry: Geometry, a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Pairs of the plan that is monotone along the first coordinate: they carry all mass."""
    x, y = (np.argsort(side.points[: side.n, 0].cpu().numpy()) for side in (geometry.x, geometry.y))
    i, j, _ = northwest_corner(a[x], b[y])
    return x[i], y[j]

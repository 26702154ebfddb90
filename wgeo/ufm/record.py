"""A solution as a record: the numbers of its tables and figures."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from ..results import defined
from .curvature import Landscape
from .deep import deep_collapse
from .mufm.solution import MUFMSolution
from .solution import UFMSolution

SCHEMA = 1


def record_of(
    solution: UFMSolution | MUFMSolution, landscape: Landscape | None = None
) -> dict[str, Any]:
    """Return everything except the arrays, ready for JSON.

    The record contains ``to_dict()`` of the solution, and:

    - ``curve``: for every layer, its collapse metrics and, except for MUFM, its DNC1 to DNC3 under
      ``deep``;
    - ``values``: the final objective of each random start;
    - ``view``: under ``means``, the cosines of the last layer's class means, not centered (K x K;
      None for a class whose mean vanishes);
    - ``landscape``, if given.
    """
    curve: list[dict[str, Any]] = [layer.to_dict() for layer in solution.curve()]
    if isinstance(solution, UFMSolution):
        for layer, deep in zip(curve, deep_collapse(solution), strict=True):
            layer["deep"] = deep.to_dict()
        features = solution.layer(len(solution.weights) - 1)
    else:
        features = solution.layer(solution.layers)
    y = solution.labels
    means = np.stack([features[y == k].mean(0) for k in range(len(solution.W))])
    return {
        "schema": SCHEMA,
        **solution.to_dict(),
        "classes": len(means),
        "counts": np.bincount(y).tolist(),
        "dim": means.shape[1],
        "bias": solution.b.tolist(),
        "values": list(solution.values),
        "curve": curve,
        "view": {"means": [[defined(value) for value in row] for row in cosines(means)]},
        "landscape": None if landscape is None else landscape.to_dict(),
    }


def cosines(A: Float[np.ndarray, "K d"]) -> Float[np.ndarray, "K K"]:
    """Return cos(a_k, a_l) for all pairs of rows; NaN if a row vanishes beside the largest."""
    norms = np.linalg.norm(A, axis=1, keepdims=True)
    vanishing = norms <= 1e-12 * max(float(norms.max()), 1e-300)
    unit = A / np.where(vanishing, np.nan, norms)
    return np.clip(unit @ unit.T, -1.0, 1.0)


def arrays_of(solution: UFMSolution | MUFMSolution) -> dict[str, Any]:
    """Return the arrays of a solution by name, as ``numpy.savez`` takes them.

    X and H have the papers' orientation: columns are samples.
    """
    common = {"labels": solution.labels, "b": solution.b}
    if isinstance(solution, MUFMSolution):
        return {**common, "X": solution.X.T, "H": solution.H.T, "W": solution.W}
    weights = {f"W{i}": W for i, W in enumerate(solution.weights, 1)}
    return {**common, "H": solution.H, **weights}

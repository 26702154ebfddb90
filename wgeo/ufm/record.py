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
    """Return ``to_dict()`` of a solution with the numbers of its tables and figures, for JSON.

    ``curve`` contains the collapse metrics of every layer and, except for MUFM, its DNC1 to DNC3
    (``deep``). ``view`` contains the cosines of the last layer's class means, without centering;
    None for a class whose mean vanishes.
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
    """Return the cosines of all pairs of rows; NaN for rows that are zero up to rounding."""
    norms = np.linalg.norm(A, axis=1, keepdims=True)
    vanishing = norms <= 1e-12 * max(float(norms.max()), 1e-300)
    unit = A / np.where(vanishing, np.nan, norms)
    return np.clip(unit @ unit.T, -1.0, 1.0)


def arrays_of(solution: UFMSolution | MUFMSolution) -> dict[str, Any]:
    """Return the arrays of a solution for ``numpy.savez``; columns of X and H are samples."""
    common = {"labels": solution.labels, "b": solution.b}
    if isinstance(solution, MUFMSolution):
        return {**common, "X": solution.X.T, "H": solution.H.T, "W": solution.W}
    weights = {f"W{i}": W for i, W in enumerate(solution.weights, 1)}
    return {**common, "H": solution.H, **weights}

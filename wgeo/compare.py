"""The network beside the models that theory offers, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from .collapse import LayerCollapse, collapse_of
from .trajectory import Segment, Trajectory


@dataclass(frozen=True)
class ModelLayer:
    """What a model predicts at one layer, beside what was measured there.

    Attributes
    ----------
    name, stage
        The layer of the network.
    relative_error : float or None
        ||H_model - H|| / ||H - H_first|| in Frobenius norm: 0 is a perfect prediction, 1 as far
        off as predicting that nothing moves. None where the features do not move.
    r2 : float or None
        1 - ||H_model - H||^2 / ||H - H_first||^2.
    collapse : LayerCollapse
        Collapse metrics of the predicted features.
    """

    name: str
    stage: int
    relative_error: float | None
    r2: float | None
    collapse: LayerCollapse

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, ready for JSON."""
        return {
            "name": self.name,
            "stage": self.stage,
            "relative_error": self.relative_error,
            "r2": self.r2,
            "collapse": self.collapse.to_dict()["collapse"],
        }


def geodesic_model(traj: Trajectory) -> tuple[ModelLayer, ...]:
    """Predict every layer by the straight line from a segment's first to its last layer.

    H_l = (1 - l/L) H_0 + (l/L) H_L: the features of a network that follows a Wasserstein geodesic
    at constant speed, with the end-to-end pairing optimal (Wang, Gai, Zhang 2024, arXiv
    2405.00985). The end layers are reproduced by construction; the inner ones are predictions.

    Parameters
    ----------
    traj : Trajectory
    """
    found: list[ModelLayer] = []
    for segment in traj.segments:
        found.extend(predicted(traj, segment, _line(segment)))
    return tuple(found)


def _line(segment: Segment) -> Callable[[int], Float[np.ndarray, "n d"]]:
    first, final = segment.arrays[0].astype(np.float64), segment.arrays[-1].astype(np.float64)
    steps = len(segment.arrays) - 1
    return lambda i: (1 - i / steps) * first + (i / steps) * final


def predicted(
    traj: Trajectory, segment: Segment, model: Callable[[int], Float[np.ndarray, "n d"]]
) -> Iterator[ModelLayer]:
    """Set a model's features of layer i of a segment, ``model(i)``, beside the measured ones."""
    start = segment.arrays[0].astype(np.float64)
    for i, (name, measured) in enumerate(zip(segment.names, segment.arrays, strict=True)):
        features = model(i)
        moved = float(np.linalg.norm(measured - start))
        missed = float(np.linalg.norm(features - measured))
        error = missed / moved if moved > 0 else None
        yield ModelLayer(
            name=name,
            stage=segment.stage,
            relative_error=error,
            r2=None if error is None else 1 - error**2,
            collapse=collapse_of(features, traj.labels, name=name, stage=segment.stage),
        )

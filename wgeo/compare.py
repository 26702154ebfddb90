"""The network beside the models that theory offers, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize

from .collapse import LayerCollapse, collapse_of
from .errors import ArgumentError, FeatureError
from .progress import track
from .trajectory import Segment, Trajectory
from .ufm.multilayer import MUFMSolution, fit_mufm

Features = Float[np.ndarray, "n d"]
_GRID = [(t, w) for t in (-5, -3, -1, 1) for w in (-6, -4, -2, 0)]  # powers of ten to start from
_FIT: dict[str, Any] = {"bias": True, "restarts": 0, "tolerance": 1e-8}
_SKETCH = _FIT | {"tolerance": 1e-5}
_REFINED = 24  # evaluations of the hyperparameter search after the grid


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


@dataclass(frozen=True, eq=False)
class Comparison:
    """A trained network's layers beside the geodesic model and MUFM.

    Attributes
    ----------
    geodesic : tuple of ModelLayer
        Of every segment: the straight line from its first to its last layer.
    mufm : tuple of ModelLayer
        Of the last segment, the one whose end the classifier reads.
    solution : MUFMSolution or None
    held_out_r2 : float or None
        R^2 over all layers of samples that MUFM was not fitted to.
    skipped : str
        Why there is no MUFM, where there is none.
    """

    geodesic: tuple[ModelLayer, ...]
    mufm: tuple[ModelLayer, ...] = ()
    solution: MUFMSolution | None = None
    held_out_r2: float | None = None
    skipped: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The record's ``geodesic_model`` and ``mufm``."""
        model: dict[str, Any] = {"layers": [layer.to_dict() for layer in self.mufm]}
        if self.solution is None:
            model["skipped"] = self.skipped
        else:
            model |= {"held_out_r2": self.held_out_r2, "solution": self.solution.to_dict()}
        return {
            "geodesic_model": {"layers": [layer.to_dict() for layer in self.geodesic]},
            "mufm": model,
        }


def compare(
    traj: Trajectory, model: MUFMSolution | None = None, *, mufm: bool = True, seed: int = 0
) -> Comparison:
    """Set a trained network's layers beside what the models predict for them.

    Parameters
    ----------
    traj : Trajectory
    model : MUFMSolution, optional
        Fitted to the first layer of the last segment (``fit_mufm(traj.segments[-1].arrays[0],
        traj.labels, layers=...)``). By default its transport strength and weight decay are chosen
        so that its straight paths come closest to the measured ones, on half of the samples, and
        judged on the other half.
    mufm : bool
        Whether to fit MUFM where no `model` is given; False leaves the geodesic model alone.
    seed : int
        Of the halves.

    Raises
    ------
    ArgumentError
        `model` has another number of layers, samples or features than the segment.
    """
    geodesic = geodesic_model(traj)
    if not traj.segments:
        return Comparison(geodesic, skipped="No two layers share a feature space.")
    if model is None and not mufm:
        return Comparison(geodesic, skipped="MUFM was not asked for (--mufm).")
    segment = traj.segments[-1]
    labels = np.unique(traj.labels, return_inverse=True)[1].astype(np.int64)
    held_out = None
    try:
        if model is None:
            model, held_out = _fitted(segment, labels, seed)
    except FeatureError as error:
        return Comparison(geodesic, skipped=str(error))
    steps = len(segment.arrays) - 1
    if model.layers != steps or model.X.T.shape != segment.arrays[0].shape:
        raise ArgumentError(
            f"The model has {model.layers} layers of {model.X.shape[1]} samples by "
            f"{model.X.shape[0]} features; the segment has {steps} of "
            f"{segment.arrays[0].shape[0]} by {segment.arrays[0].shape[1]}."
        )
    return Comparison(geodesic, _beside(traj, segment, model.layer), model, held_out)


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
        found.extend(_beside(traj, segment, _line(segment)))
    return tuple(found)


def _line(segment: Segment) -> Callable[[int], Features]:
    first, final = segment.arrays[0].astype(np.float64), segment.arrays[-1].astype(np.float64)
    steps = len(segment.arrays) - 1
    return lambda i: (1 - i / steps) * first + (i / steps) * final


def _beside(
    traj: Trajectory, segment: Segment, model: Callable[[int], Features]
) -> tuple[ModelLayer, ...]:
    """Set a model's features of layer i of a segment, ``model(i)``, beside the measured ones."""
    start = segment.arrays[0].astype(np.float64)
    found = []
    for i, (name, measured) in enumerate(zip(segment.names, segment.arrays, strict=True)):
        features = model(i)
        moved = float(np.linalg.norm(measured - start))
        missed = float(np.linalg.norm(features - measured))
        error = missed / moved if moved > 0 else None
        found.append(
            ModelLayer(
                name=name,
                stage=segment.stage,
                relative_error=error,
                r2=None if error is None else 1 - error**2,
                collapse=collapse_of(features, traj.labels, name=name, stage=segment.stage),
            )
        )
    return tuple(found)


def _fitted(
    segment: Segment, labels: Int[np.ndarray, " n"], seed: int
) -> tuple[MUFMSolution, float | None]:
    """MUFM with the hyperparameters that predict best, and its R^2 on samples not fitted to."""
    layers = [array.astype(np.float64) for array in segment.arrays]
    moved = float(np.linalg.norm(layers[-1] - layers[0]))
    if moved == 0:
        raise FeatureError("MUFM has nothing to explain: the last segment's features do not move.")
    half = _halves(labels, seed)
    spread = float(np.mean(layers[0].var(0))) or 1.0
    chosen = _search([layer[half] for layer in layers], labels[half], spread)
    steps, held_out = len(layers) - 1, None
    if not half.all():
        taught = fit_mufm(layers[0][half], labels[half], layers=steps, **_FIT, **chosen)
        held_out = _judge(taught, [layer[~half] for layer in layers], labels[~half])
    return fit_mufm(layers[0], labels, layers=steps, **_FIT, **chosen), held_out


def _halves(labels: Int[np.ndarray, " n"], seed: int) -> np.ndarray:
    """Half of every class; all of the samples where a class has one."""
    if np.bincount(labels).min() < 2:
        return np.ones(len(labels), dtype=bool)
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.zeros(len(labels), dtype=np.int64)
    for k in np.unique(labels):
        mine = order[labels[order] == k]
        rank[mine] = np.arange(len(mine))
    return rank % 2 == 0


def _search(layers: list[Features], labels: Int[np.ndarray, " n"], spread: float) -> dict[str, Any]:
    """Transport strength and weight decay whose lines come closest to the measured layers.

    The search is in their logarithms, in units of the first layer's variance: scaling the
    features by c scales both by 1 / c^2. A grid comes first, since the error has several basins.
    """
    steps = len(layers) - 1
    total = sum(float(np.sum((layer - layers[0]) ** 2)) for layer in layers[1:])

    def settings(logs: Any) -> dict[str, Any]:
        transport, decay = (float(10.0 ** np.clip(log, -9.0, 4.0)) for log in logs)
        return {"transport": transport / spread, "weight_decay": decay * spread}

    def miss(logs: Any) -> float:
        chosen = settings(logs)
        m = fit_mufm(layers[0], labels, layers=steps, **_SKETCH, **chosen)
        lines = ((m.layer(i) - layers[i]) for i in range(1, steps + 1))
        return sum(float(np.sum(line**2)) for line in lines) / total

    tried = {logs: miss(logs) for logs in track(_GRID, "fitting MUFM")}
    best = min(tried, key=lambda logs: tried[logs])
    options = {"maxfev": _REFINED, "xatol": 0.05, "fatol": 1e-4}
    found = minimize(miss, best, method="Nelder-Mead", options=options)
    return settings(found.x)


def _judge(
    model: MUFMSolution, layers: list[Features], labels: Int[np.ndarray, " n"]
) -> float | None:
    """R^2 of a model over the layers of samples it has not seen, given its W and b."""
    last = model.apply(layers[0], labels)
    steps = len(layers) - 1
    missed = moved = 0.0
    for i, layer in enumerate(layers):
        t = i / steps
        missed += float(np.sum(((1 - t) * layers[0] + t * last - layer) ** 2))
        moved += float(np.sum((layer - layers[0]) ** 2))
    return None if moved == 0 else 1 - missed / moved

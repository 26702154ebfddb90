"""Contributions of samples to a segment's measures, from which resamples are computed quickly.

Every measure of a segment is a function of column means: of per-sample measures, of squared
displacements, and of the influence functions of W2^2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from ..trajectory import Segment, Trajectory
from ..transport import TransportResult
from .correlation import Moments, rounding_of
from .paths import PathMeasures, path_measures
from .resampling import Resampled, resample

TRAJECTORY_MEASURES = (
    "line_shape_score",
    "line_shape_ratio",
    "turning_angle",
    "orthogonal_share",
)
TRANSPORT_MEASURES = (
    "distance",
    "length",
    "length_ratio",
    "action_ratio",
    "speed_deviation",
    "ot_score",
)
MOVING = ("moving_blocks", "sqrt_moving_blocks")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LINEARIZED = (*TRANSPORT_MEASURES, *MOVING, "ot_score_centred", "corr_score")


@dataclass(frozen=True, eq=False)
class SegmentSample:
    """A segment's samples as a table whose column means determine every measure.

    If `centered`, each layer's mean was subtracted, and there are correlation scores too. Resamples
    keep the means of all samples: the variation of the means has only a second-order effect on
    every cost, and none on a line shape if centered paths are as likely as their mirror images.
    """

    path: PathMeasures
    steps: Sequence[TransportResult]  # between consecutive layers
    end: TransportResult | None  # between the first and last layer; None for path measures only
    floor: float  # distance that rounding can cause; distances up to it count as zero
    centered: bool = False

    @classmethod
    def of(
        cls,
        segment: Segment,
        steps: Sequence[TransportResult] = (),
        end: TransportResult | None = None,
    ) -> SegmentSample:
        """Measure the paths of a segment; `steps` and `end` are its transport results, if any."""
        return cls(path_measures(segment.arrays), steps, end, rounding_of(segment.arrays))

    @classmethod
    def centered_of(
        cls, moments: Moments, steps: Sequence[TransportResult], end: TransportResult
    ) -> SegmentSample:
        """Measure the centered layers; `steps` and `end` are their transport results."""
        path = path_measures(moments.arrays, centres=moments.centers)
        return cls(path, steps, end, moments.floor, True)

    @property
    def linearized(self) -> bool:
        """Whether every distance has potentials, and therefore an influence function."""
        return all(result.potentials is not None for result in self._results())

    def resampled(
        self, draws: int, seed: int, groups: Int[np.ndarray, " n"] | None = None
    ) -> Resampled:
        """Return the measures of this sample, of its bootstraps, and with each sample left out."""
        return resample(self._columns(), self._measures, draws=draws, seed=seed, groups=groups)

    def quantiles(self, traj: Trajectory) -> dict[str, dict[str, list[float]]]:
        """Return quantiles of each measure over all samples and by class, if defined."""
        members_of = {"all": np.ones(len(traj), dtype=bool)}
        for k in np.unique(traj.labels):
            name = traj.class_names[k] if k < len(traj.class_names) else str(k)
            members_of[f"{name} ({k})" if name in members_of else name] = traj.labels == k
        return {
            name: {
                group: [float(q) for q in np.nanquantile(values[members], QUANTILES)]
                for group, members in members_of.items()
                if not np.isnan(values[members]).all()
            }
            for name in TRAJECTORY_MEASURES
            for values in [getattr(self.path, name)]
        }

    def _columns(self) -> Float[np.ndarray, "n c"]:
        path = [getattr(self.path, name) for name in TRAJECTORY_MEASURES]
        defined = [~np.isnan(values) for values in path]
        filled = [np.nan_to_num(values) for values in path]
        transport = [_influence(result, len(path[0])) for result in self._results()]
        square = [self.path.square] if self.centered else []
        costs = [self.path.step_cost, self.path.chord_cost]
        return np.column_stack([*filled, *defined, *costs, *square, *transport])

    def _results(self) -> list[TransportResult]:
        return [] if self.end is None else [*self.steps, self.end]

    def _measures(self, means: Float[np.ndarray, "m c"]) -> dict[str, Float[np.ndarray, " m"]]:
        count, blocks = len(TRAJECTORY_MEASURES), self.path.step_cost.shape[1]
        widths = [count, count, blocks + 1, (blocks + 1) * self.centered]
        sums, shares, moved, square, costs = np.split(means, np.cumsum(widths), axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            measures = dict(zip(TRAJECTORY_MEASURES, (sums / shares).T, strict=True))
            paired = self._length(moved)
            measures["paired"] = paired[:, -1]
            if self.end is not None:
                distance = self._length(costs)
                measures |= _transport_measures(distance[:, :-1], distance[:, -1])
                measures["ot_score"] = _ot_score(distance[:, -1], paired[:, -1])
                for step in range(blocks):
                    measures[f"paired {step}"] = paired[:, step]
                    measures[f"distance {step}"] = distance[:, step]
                    measures[f"ot_score {step}"] = _ot_score(distance[:, step], paired[:, step])
            if self.centered:
                measures |= self._correlations(moved, costs, square)
        return measures

    def _correlations(
        self, moved: np.ndarray, costs: np.ndarray, square: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return the correlation scores of every step and end to end, from mean squares."""
        layers = square.shape[1]
        names = [f" {step}" for step in range(layers - 1)] + [""]
        ends = [(step, step + 1) for step in range(layers - 1)] + [(0, layers - 1)]
        scores = {}
        for k, (name, (i, j)) in enumerate(zip(names, ends, strict=True)):
            total = square[:, i] + square[:, j]
            best = np.where(total - costs[:, k] > self.floor**2, total - costs[:, k], np.nan)
            scores[f"corr_score{name}"] = np.minimum((total - moved[:, k]) / best, 1.0)
        return scores

    def _length(self, squared: np.ndarray) -> np.ndarray:
        length = np.sqrt(np.maximum(squared, 0.0))
        return np.where(length > self.floor, length, 0.0)


def _transport_measures(steps: np.ndarray, end: np.ndarray) -> dict[str, np.ndarray]:
    """Return the measures of W2 lengths `steps` (m, L) and `end` (m,)."""
    length, chord = steps.sum(1), np.where(end > 0, end, np.nan)
    count = steps.shape[1]
    moving = length**2 / np.where(length > 0, (steps**2).sum(1), np.nan)
    # A ratio can be below 1 only because of a solver's error or the linearization.
    return {
        "moving_blocks": moving,
        "sqrt_moving_blocks": np.sqrt(moving),
        "distance": end,
        "length": length,
        "length_ratio": np.maximum(length / chord, 1.0),
        "action_ratio": np.maximum(count * (steps**2).sum(1) / chord**2, 1.0),
        "speed_deviation": steps.std(1) / np.where(length > 0, length / count, np.nan),
    }


def _ot_score(distance: np.ndarray, paired: np.ndarray) -> np.ndarray:
    return np.minimum(distance**2 / np.where(paired > 0, paired, np.nan) ** 2, 1.0)


def _influence(result: TransportResult, n: int) -> Float[np.ndarray, " n"]:
    """Return n values with mean W2^2: f(x_i) + g(y_i), or W2^2 if the solver has no potentials.

    To first order, resampling f(x_i) + g(y_i) is exact (del Barrio and Loubes 2019, thm 4.1). The
    values are shifted so that their mean, a lower bound on the cost, becomes the computed cost.
    """
    if result.potentials is None:
        return np.full(n, result.cost)
    f, g = result.potentials
    influence = np.asarray(f, dtype=np.float64) + np.asarray(g, dtype=np.float64)
    return influence - influence.mean() + result.cost

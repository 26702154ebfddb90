"""Results of `straightness`: a row per block, and a set of measures per segment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..results import Result
from ..text import counted
from ..thresholds import LOW_RESOLUTION

Interval = tuple[float, float]
Score = tuple[float, float, float]
_NOT_IN_TABLE = ("intervals", "null", "spread", "corr_score")  # more than one value


@dataclass(frozen=True, eq=False)
class NullScore:
    """Correlation scores of null maps, which permute or rotate the displacements of a pair.

    Attributes
    ----------
    kind : str
        ``dealt`` (permuted) or ``turned`` (rotated); see ``wgeo.geodesic.reliability``.
    score : (value, low, high)
        The highest value, the lowest certified lower bound and the highest certified upper bound of
        all draws.
    draws : tuple of float
        The score of every draw.
    own : (value, low, high)
        The correlation score of the pair's own displacements on the same samples.
    samples : int
        Number of samples on which the scores were computed, at most 2,000.
    ot_score : float
        The highest certified upper bound of the draws' centered OT scores.
    """

    kind: str
    score: Score
    draws: tuple[float, ...]
    own: Score
    samples: int
    ot_score: float


@dataclass(frozen=True, eq=False)
class Pairs:
    """Transport between all pairs of layers of a segment, in (k, k) matrices.

    Attributes
    ----------
    layers : tuple of str
        The k layers compared: all layers of the segment, or 9 evenly spaced ones of more than 10.
    distance, lower, upper : tuple of tuple of float
        W2 and an interval that contains it; symmetric, with zeros on the diagonal.
    corr_score, corr_low, corr_high : tuple of tuple of (float or None)
        The correlation score and its certified interval; None if undefined.
    null : tuple of tuple of (float or None), or None
        The highest certified upper bound of each pair's null scores. An entry is None for a pair
        without null maps; the matrix is None if no pair has any.
    """

    layers: tuple[str, ...]
    distance: tuple[tuple[float, ...], ...]
    lower: tuple[tuple[float, ...], ...]
    upper: tuple[tuple[float, ...], ...]
    corr_score: tuple[tuple[float | None, ...], ...]
    corr_low: tuple[tuple[float | None, ...], ...]
    corr_high: tuple[tuple[float | None, ...], ...]
    null: tuple[tuple[float | None, ...], ...] | None = None


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Optimality(Result):
    """Whether a block, or a segment from end to end, pairs inputs x_i and outputs y_i optimally.

    Notation: m = mean(y - x); u = x - mean x and v = y - mean y are the centered clouds;
    sd_x^2 = mean ||u||^2, sd_y^2 = mean ||v||^2 and S = sd_x^2 + sd_y^2.

    Attributes
    ----------
    samples : int
        n, the number of samples.
    distinct : int
        Number of distinct images: n, or the number of ``groups`` (`straightness`).
    spread : tuple of float
        sd of each layer, in units of the features.
    spread_ratio : float, or None if x is a point
        sd_y / sd_x.
    effective_samples : float in [1, distinct], or None if all weights w are 0
        Effective number of samples in these values; if it is near 1, a single sample determines
        them. It is the smallest of (sum w)^2 / sum w^2 for three weights w of a sample:
        ||u|| ||v||, its centered transport cost from end to end, and the sum of the costs of its
        steps.
    relative_displacement : float, or None if both are points
        sqrt(mean ||v - u||^2) / max(sd_x, sd_y). If it is near `relative_rounding`, nothing has
        moved except for a common shift, and scores are meaningless.
    relative_rounding : float, or None if both are points
        The largest displacement that rounding of the features can cause, divided by
        max(sd_x, sd_y).
    shift_share : float in [0, 1], or None if nothing moves
        ||m||^2 / mean ||y - x||^2, the fraction of the motion that is a shift common to all
        samples. Such a shift does not change which coupling is optimal.
    ot_score_centred : float in [0, 1], or None if nothing moves except for a common shift
        W2^2(u, v) / mean ||v - u||^2 = (W2^2 - ||m||^2) / (paired^2 - ||m||^2) <= ot_score.
    corr_score : (value, low, high), or None if undefined
        mean <u, v> divided by its maximum over all couplings,
        (S - mean ||v - u||^2) / (S - W2^2(u, v)). It is 1 if the pairing is optimal, less for any
        other pairing, and 0 on average for a random one. It does not change if either cloud is
        translated or scaled. (The OT score, in contrast, tends to 1 for *any* pairing if one cloud
        is much larger than the other.) ``low`` and ``high`` follow from the interval of W2, and are
        certified; ``intervals["corr_score"]`` is the variation over samples. None if a cloud is a
        point, or if nothing bounds the score from below.
    null : tuple of NullScore
        Scores of null maps; empty if none were computed.
    power : bool or None
        Whether the lower bound of the score clearly exceeds the upper bounds of all null scores.
        Only then can these samples distinguish an optimal map from null maps, so that a score near
        1 is evidence. A score clearly below 1 always proves that the map is not optimal, since an
        optimal map is optimal on every sample. None without null scores.
    """

    samples: int
    distinct: int
    effective_samples: float | None
    spread: tuple[float, ...]
    spread_ratio: float | None
    relative_displacement: float | None
    relative_rounding: float | None
    shift_share: float | None
    ot_score_centred: float | None
    corr_score: Score | None
    null: tuple[NullScore, ...] = ()
    power: bool | None = None


@dataclass(frozen=True, eq=False, repr=False)
class BlockTransport(Optimality):
    """One block as a pushforward: W2 between its input and output, and the network's own pairing.

    It has these attributes and those of `Optimality`, for the map from `source` to `target`.

    Attributes
    ----------
    source, target : str
        Names of the layers; the map goes from `source` to `target`.
    stage : int
        Index of the feature space in which the two layers are compared.
    via : str
        ``identity``, or ``shortcut`` if the block changes the space. The output of its shortcut is
        then compared with the target.
    distance, lower, upper : float
        W2 and an interval that contains it, in units of the features.
    paired : float
        sqrt(mean_i ||x_i - y_i||^2), the distance under the network's own pairing; >= W2.
    ot_score : float in [0, 1], or None if no sample moves
        OTS = W2^2 / paired^2; 1 if the network's pairing is optimal (Gai and Zhang 2021).
    resolution : float or None
        Median size of the displacements, after subtracting their mean, divided by the median
        distance to the nearest neighbor. Below 1/2 the OT score is not evidence of an optimal map.
        None if all samples coincide.
    status, solver, seconds : str, str, float
        As in `TransportResult`.
    intervals : dict of (low, high)
        95 % bootstrap intervals of `distance`, `paired`, `ot_score`, `ot_score_centred` and
        `corr_score`, if defined; see `straightness`.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(40, 3))
    >>> traj = wgeo.Trajectory.from_arrays([x, x + [1, 2, 2]], np.arange(40) % 2)
    >>> block = wgeo.straightness(traj, bootstrap=0).blocks[0]
    >>> block.source, block.target, round(block.distance, 6), round(block.shift_share, 6)
    ('layer0', 'layer1', 3.0, 1.0)
    """

    source: str
    target: str
    stage: int
    via: str
    distance: float
    lower: float
    upper: float
    paired: float
    ot_score: float | None
    resolution: float | None
    status: str
    solver: str
    seconds: float
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    @property
    def resolved(self) -> bool:
        """Whether `ot_score` is evidence: `resolution` is at least 1/2."""
        return self.resolution is not None and self.resolution >= LOW_RESOLUTION

    def _record(self) -> dict[str, Any]:
        return {"blocks": [self.to_dict()]}

    def _description(self) -> str:
        return (
            f"{self.source} -> {self.target}, {self.samples} samples: W2 = {self.distance:.4g}, "
            f"{self.status}; {_scores(self)}"
        )


@dataclass(frozen=True, eq=False, repr=False)
class SegmentStraightness(Optimality):
    """Straightness of consecutive layers in one space; an undefined measure is None.

    Notation: mu_l is the distribution of the features x_l of layer l, W_l = W2(mu_l, mu_{l+1}), and
    D = W2(mu_0, mu_L). The segment has these attributes and those of `Optimality`, for the map from
    its first layer to its last.

    Attributes
    ----------
    layers : tuple of str
    stage : int
    distance : float
        D, in units of the features.
    length : float
        sum_l W_l >= D.
    length_ratio : float in [1, inf), or None if D is 0
        length / D; 1 if and only if the distributions lie, in order, on one geodesic.
    action_ratio : float in [1, inf), or None
        L sum_l W_l^2 / D^2 >= length_ratio^2; 1 if and only if the path is a geodesic at constant
        speed (Benamou and Brenier 2000).
    speed_deviation : float in [0, inf), or None if nothing moves
        Coefficient of variation c of W_0, ..., W_{L-1}; action_ratio = length_ratio^2 (1 + c^2).
    moving_blocks : float in [1, L], or None if nothing moves
        B = length^2 / sum_l W_l^2, the effective number of blocks that move.
    sqrt_moving_blocks : float, or None
        sqrt(B), the length ratio that mutually orthogonal steps of these lengths would have. A path
        whose length ratio is near sqrt(B) is not straight, even if the ratio is close to 1.
    length_over_runs : dict of {k: float or None}
        L(k) / D, where L(k) is the length of the path through k + 1 evenly spaced layers; they
        divide the blocks into k groups. The keys k are L and those of 2, 4 and 8 that are below L.
        L(k) never decreases with k, so networks of different depth are compared at equal k. Without
        `pairs`, only k = L is available.
    line_shape_score, line_shape_ratio, turning_angle, orthogonal_share : float or None
        Means over the samples for which they are defined; see ``wgeo.geodesic.paths.PathMeasures``.
    paired : float
        sqrt(mean ||x_0 - x_L||^2) >= D.
    ot_score : float in [0, 1], or None
        D^2 / paired^2.
    resolution : float or None
        Resolution of the map from the first layer to the last; see `BlockTransport`.
    interpolation_gap : tuple of (float or None), one per layer
        W2(mu_l, nu_t) / D, the distance of layer l from the geodesic. The geodesic is the
        displacement interpolation of the end layers (McCann 1997): nu_t is the distribution of
        (1 - t) x_0 + t T(x_0), with the optimal map T. The time t is the length of the path up to
        layer l divided by `length`. The gap is 0 at both ends. None if D is 0, or if the solver
        does not prove a permutation optimal (`Exact` does). Also None, with a warning, if the disk
        has no space for the nu_t of stored layers.
    interpolation_time : tuple of (float or None), one per layer
        The t of each layer, in [0, 1]; None if D is 0.
    quantiles : dict
        {measure: {"all" or class: [5, 25, 50, 75, 95 %]}} for the per-sample measures. If a class's
        name is ``all``, or that of an earlier class, its label is appended: ``all (3)``.
    undefined_samples : dict of int
        Number of samples for which each per-sample measure is undefined (``PathMeasures``).
    intervals : dict of (low, high)
        95 % bootstrap intervals; see `straightness`.
    centred : dict
        Measures of the path with each layer's mean subtracted, under the same names: `distance`,
        `length`, `length_ratio`, `action_ratio`, `speed_deviation`, `moving_blocks`,
        `sqrt_moving_blocks`, the line shapes, `turning_angle`, `orthogonal_share`, `paired`,
        `ot_score`, `length_over_runs` and their `intervals`. Two more values show whether the
        samples are dense enough to detect a turn: ``null_length_ratio``, the length divided by the
        largest W2 between the ends of a null map; and ``length_ratio_at_most``, a one-sided 95 %
        upper bound on the population's length ratio (``wgeo.geodesic.reliability``).
    pairs : Pairs or None
        Transport between all pairs of layers; None for only two layers, or if it was not computed.

    Examples
    --------
    Two equal steps at a right angle make the path sqrt(2) times as long as its chord:

    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(40, 2))
    >>> traj = wgeo.Trajectory.from_arrays([x, x + [1, 0], x + [1, 1]], np.arange(40) % 2)
    >>> segment = wgeo.straightness(traj, bootstrap=0).segments[0]
    >>> round(segment.length_ratio, 4), round(segment.turning_angle, 2)
    (1.4142, 90.0)
    """

    layers: tuple[str, ...]
    stage: int
    distance: float
    length: float
    length_ratio: float | None
    action_ratio: float | None
    speed_deviation: float | None
    line_shape_score: float | None
    line_shape_ratio: float | None
    turning_angle: float | None
    orthogonal_share: float | None
    paired: float
    ot_score: float | None
    resolution: float | None
    interpolation_gap: tuple[float | None, ...]
    interpolation_time: tuple[float | None, ...]
    quantiles: Mapping[str, Mapping[str, list[float]]]
    undefined_samples: Mapping[str, int]
    moving_blocks: float | None
    sqrt_moving_blocks: float | None
    length_over_runs: Mapping[int, float | None]
    centred: Mapping[str, Any]
    pairs: Pairs | None = None
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    @property
    def resolved(self) -> bool:
        """Whether `ot_score` is evidence: `resolution` is at least 1/2."""
        return self.resolution is not None and self.resolution >= LOW_RESOLUTION

    def _record(self) -> dict[str, Any]:
        return {"segments": [self.to_dict()]}

    def _description(self) -> str:
        return (
            f"{self.layers[0]} -> {self.layers[-1]}, {self.samples} samples: "
            f"W2 = {self.distance:.4g}; length ratio {_formatted(self.length_ratio)}; "
            f"{_scores(self)}"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Straightness(Result):
    """Every block's transport and every segment's straightness, in execution order.

    ``to_pandas()`` has a row per block, without intervals and null maps.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(40, 3))
    >>> traj = wgeo.Trajectory.from_arrays([x, 1.5 * x, 2 * x], np.arange(40) % 2)
    >>> result = wgeo.straightness(traj, bootstrap=0)
    >>> [block.target for block in result.blocks], result.segments[0].layers
    (['layer1', 'layer2'], ('layer0', 'layer1', 'layer2'))
    """

    blocks: tuple[BlockTransport, ...]
    segments: tuple[SegmentStraightness, ...]

    def _table(self) -> list[dict[str, Any]]:
        corr_score = ("corr_score", "corr_low", "corr_high")
        return [
            {
                **{k: v for k, v in block.to_dict().items() if k not in _NOT_IN_TABLE},
                **dict(zip(("spread_source", "spread_target"), block.spread, strict=True)),
                **dict(zip(corr_score, block.corr_score or (None,) * 3, strict=True)),
            }
            for block in self.blocks
        ]

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {
                "segment": f"{segment.layers[0]} -> {segment.layers[-1]}",
                "W2": segment.distance,
                "length ratio": segment.length_ratio,
                "centred": segment.centred.get("length_ratio"),
                "sqrt(moving)": segment.sqrt_moving_blocks,
                "OT score": segment.ot_score,
                "corr. score": segment.corr_score and segment.corr_score[0],
            }
            for segment in self.segments
        ]

    def _description(self) -> str:
        return f"{counted(len(self.blocks), 'block')} in {counted(len(self.segments), 'segment')}"

    def _curve(self) -> tuple[str, list[float]]:
        return "W2 of the blocks, in order", [block.distance for block in self.blocks]


def _scores(pair: BlockTransport | SegmentStraightness) -> str:
    corr = pair.corr_score and pair.corr_score[0]
    return f"OT score {_formatted(pair.ot_score)}, correlation score {_formatted(corr)}"


def _formatted(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"

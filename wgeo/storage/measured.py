"""The measurements in a record: layers, blocks and segments, and their residual Jacobians."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, ClassVar, NamedTuple

from .schema import Part, array

Number = float | None
Numbers = tuple[float | None, ...]
Matrix = tuple[Numbers, ...]
Plane = Annotated[Sequence[Any], array(None, None, 2)]  # (layers, classes or samples, 2)
Points = Annotated[Sequence[Any], array(None, None)]
Pair = Annotated[Sequence[float], array(2)]


class Interval(NamedTuple):
    """The ends of a 95 % interval."""

    low: float
    high: float


class Score(NamedTuple):
    """A score with its certified bounds."""

    value: float
    low: float
    high: float


class Measured(Part):
    """Values, some of which have intervals."""

    intervals: Mapping[str, Interval | None] = field(default_factory=dict)

    def interval(self, key: str) -> Interval | None:
        """Return the interval of a value; None if it has none."""
        return self.intervals.get(key)


class Collapse(Measured):
    """The collapse metrics of a layer, and why some are undefined."""

    undefined: Mapping[str, str] = field(default_factory=dict)
    class_variability: Numbers = ()
    others: ClassVar[Any] = Number


class Layer(Part):
    """A layer of the network."""

    name: str
    stage: int | None = None
    width: int | None = None
    collapse: Collapse


class Trend(Part):
    """The change of a metric over depth."""

    kendall_tau: float | None = None
    interval: Interval | None = None
    violations: int | None = None
    violation_size: float | None = None
    monotone: bool | None = None
    reached: str | None = None
    reached_depth: float | None = None
    increases: tuple[str, ...] = ()


class SegmentLaw(Measured):
    """The separation of the classes over a stage's layers, and the constant rate fitted to it."""

    layers: tuple[str, ...]
    stage: int | None = None
    separation: Numbers
    compression: Numbers
    discrimination: Numbers
    rate: float | None = None
    correlation: float | None = None
    curvature: float | None = None
    discrimination_slope: float | None = None
    others: ClassVar[Any] = Number


class SeparationLaw(Part):
    """The law of data separation, in every stage."""

    segments: tuple[SegmentLaw, ...]
    samples_per_class: int | None = None


class Brenier(Measured):
    """The test of whether a map is the gradient of a convex function, at some images."""

    points: int | None = None
    asymmetry: float | None = None
    displacement_asymmetry: float | None = None
    min_eigenvalue: float | None = None
    lowest_eigenvalue: float | None = None
    relative_eigenvalue: float | None = None
    negative_share: float | None = None
    excluded: bool | None = None
    excluded_by: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    others: ClassVar[Any] = str | Number


class Null(Part):
    """The scores of null maps of one kind."""

    kind: str
    score: Score | None
    draws: Numbers
    own: Score | None
    others: ClassVar[Any] = Number


class Optimality(Measured):
    """The evidence on whether a block or a segment is an optimal map."""

    samples: int | None = None
    distinct: int | None = None
    spread: Numbers = ()
    spread_ratio: float | None = None
    relative_displacement: float | None = None
    effective_samples: float | None = None
    relative_rounding: float | None = None
    shift_share: float | None = None
    ot_score_centred: float | None = None
    corr_score: Score | None = None
    null: tuple[Null, ...] = ()
    power: bool | None = None
    asymmetry: float | None = None
    min_eigenvalue: float | None = None
    brenier: Brenier = Brenier.of({})

    @property
    def independent(self) -> int | None:
        """The number of distinct samples; if the record lacks it, the number of all samples."""
        return self.samples if self.distinct is None else self.distinct

    @property
    def highest_null(self) -> float | None:
        """The highest certified upper bound of the null maps' correlation scores."""
        highs = [null.score.high for null in self.null if null.score is not None]
        return max((high for high in highs if high is not None), default=None)


class Block(Optimality):
    """The transport between the input and the output of a block."""

    source: str
    target: str
    stage: int | None = None
    distance: float | None
    lower: float | None
    upper: float | None
    paired: float | None
    ot_score: float | None
    resolution: float | None
    seconds: float | None = None
    status: str
    solver: str
    via: str | None = None


class Centred(Measured):
    """The straightness of a segment with each layer's mean subtracted."""

    length_ratio: float | None = None
    sqrt_moving_blocks: float | None = None
    null_length_ratio: float | None = None
    length_ratio_at_most: float | None = None
    length_over_runs: Mapping[int, float | None] = field(default_factory=dict)
    others: ClassVar[Any] = Number


class Pairs(Part):
    """The transport between all pairs of a segment's layers, or some pairs of a long segment."""

    layers: tuple[str, ...]
    distance: Matrix
    lower: Matrix
    upper: Matrix
    corr_score: Matrix
    corr_low: Matrix
    corr_high: Matrix
    null: Matrix = ()


class SizePoint(Part):
    """Measures on random subsets of one size."""

    size: int
    others: ClassVar[Any] = Number


class SampleSizes(Part):
    """Measures as functions of the number of samples, and the number that resolves the OT score."""

    points: tuple[SizePoint, ...]
    enough: int | None = None


class ViewEnd(Part):
    """The last layer in coordinates of the span of its class means."""

    class_means: Points
    points: Points


class View(Part):
    """The class means and some samples of every layer of a segment, in a plane."""

    class_means: Plane
    explained: Pair
    points: Plane = ()
    labels: tuple[int, ...] = ()
    classes: tuple[int, ...] = ()
    end: ViewEnd = ViewEnd.of({})


class Segment(Optimality):
    """The straightness of the path through layers of one feature space."""

    layers: tuple[str, ...]
    stage: int | None = None
    distance: float | None
    length: float | None
    length_ratio: float | None
    action_ratio: float | None
    line_shape_score: float | None
    line_shape_ratio: float | None
    ot_score: float | None
    turning_angle: float | None
    paired: float | None = None
    resolution: float | None = None
    speed_deviation: float | None = None
    orthogonal_share: float | None = None
    moving_blocks: float | None = None
    sqrt_moving_blocks: float | None = None
    length_over_runs: Mapping[int, float | None] = field(default_factory=dict)
    interpolation_gap: Numbers = ()
    interpolation_time: Numbers = ()
    quantiles: Mapping[str, Mapping[str, Numbers]] = field(default_factory=dict)
    undefined_samples: Mapping[str, int] = field(default_factory=dict)
    centred: Centred = Centred.of({})
    pairs: Pairs = Pairs.of({})
    sample_sizes: SampleSizes = SampleSizes.of({})
    view: View = View.of({})


# --- residual Jacobians ---------------------------------------------------------------------------


class AlignedBlock(Part):
    """The residual Jacobian of a block."""

    name: str
    end: str | None = None
    singular_values: Numbers
    overlap: float | None = None
    others: ClassVar[Any] = Number


class AlignedPair(Part):
    """The residual Jacobians of two blocks, compared."""

    source: str
    target: str
    others: ClassVar[Any] = Number


class AlignedSegment(Measured):
    """The residual Jacobians of consecutive blocks, compared."""

    blocks: tuple[str, ...]
    slopes: Numbers = ()
    vectors: int | None = None
    chance: float | None = None
    overlap_uv: float | None = None
    coupling: float | None = None
    chance_coupling: float | None = None
    others: ClassVar[Any] = Number

    @property
    def slope(self) -> float | None:
        """The first entry of `slopes`, which belongs to the largest singular values."""
        return self.slopes[0] if self.slopes else None


class Alignment(Part):
    """The comparison of the blocks' residual Jacobians."""

    points: int
    skipped: str | None = None
    jacobian: str | None = None
    vectors: int | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    reset_statistics: bool = False
    blocks: tuple[AlignedBlock, ...] = ()
    pairs: tuple[AlignedPair, ...] = ()
    segments: tuple[AlignedSegment, ...] = ()
    others: ClassVar[Any] = Number

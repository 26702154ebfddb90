"""The records of an analysis and of a series: the contents of their files, schema 2.

A field that has a default may be missing or null. A number that is null is undefined.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any

import numpy as np

from .measured import AlignedSegment as AlignedSegment
from .measured import (
    Alignment,
    Block,
    Collapse,
    Interval,
    Layer,
    Segment,
    SeparationLaw,
    Trend,
    View,
)
from .measured import Brenier as Brenier
from .measured import Centred as Centred
from .measured import Measured as Measured
from .measured import Optimality as Optimality
from .measured import Score as Score
from .measured import SegmentLaw as SegmentLaw
from .measured import SizePoint as SizePoint
from .schema import Check, Fault, Part

PENULTIMATE = "penultimate"
"""Name of the classifier's input, if it is a separate layer."""


class Claim(Part):
    """An accuracy that a checkpoint states, and its key in the file."""

    key: str
    value: float | None


class Provenance(Part):
    """The network, the images and the settings."""

    checkpoint: str | None = None
    sha256: str | None = None
    arch: str | None = None
    arch_from: str | None = None
    data: str | None = None
    split: str | None = None
    pool: str | None = None
    num_classes: int | None = None
    samples: int | None = None
    epoch: Annotated[int | None, Check(lambda value: isinstance(value, int), "an integer")] = None
    class_names: tuple[str, ...] = ()
    normalize: str | Mapping[str, Any] | None = None
    normalize_source: str | None = None
    claimed_accuracy: Claim = Claim.of({})
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_initialization(self) -> bool:
        """Whether the network is untrained: in wgeo's files, epoch 0 precedes the training."""
        return self.epoch == 0 and self.epoch is not False and self.arch_from == "file"


class Trial(Part):
    """The accuracy with another normalization."""

    name: str
    accuracy: float | None


class Normalization(Part):
    """The normalization of pixels, its source, and the accuracies with others."""

    name: str
    source: str
    mean: tuple[float | None, ...]
    std: tuple[float | None, ...]
    tried: tuple[Trial, ...] = ()
    better: str | None = None
    images: int | None = None

    @property
    def origin(self) -> str:
        """The source, as text."""
        sources = {"asked": "as specified", "file": "as the file states"}
        return sources.get(self.source, "assumed")


class Classes(Part):
    """The number of classes in the images, and the number of classes of the network's head."""

    present: int
    head: int | None = None


class Trust(Part):
    """Facts that help a reader judge whether to trust the results."""

    samples: int | None = None
    samples_per_class: int | None = None
    duplicates: int | None = None
    relabelled: int | None = None
    accuracy: float | None = None
    chance: float | None = None
    chance_p: float | None = None
    at_chance: bool = False
    claimed_accuracy: Claim = Claim.of({})
    classes: Classes = Classes.of({})
    normalization: Normalization = Normalization.of({})


class Comparison(Part):
    """A comparison of a segment with the same segment of another network, tested over images."""

    layers: tuple[str, ...]
    statistic: str
    value: float | None
    reference: float | None
    difference: float | None
    interval: Interval | None = None
    effect_size: float | None
    p_value: float | None
    direction: str = "neither"
    verdict: str | None = None


class Rank(Part):
    """The rank of a segment's straightness among randomly initialized networks."""

    layers: tuple[str, ...]
    stage: int | None = None
    value: float | None
    median: float | None
    low: float | None
    high: float | None
    rank_p: float | None
    adjusted_p: float | None
    as_straight: int | None = None
    as_bent: int | None = None
    direction: str


class Ratios(Part):
    """The line-shape ratios of a segment of a randomly initialized network."""

    centred: float | None
    raw: float | None


class FreshNetwork(Part):
    """A randomly initialized network."""

    seed: int
    segments: tuple[Ratios, ...]


class Reference(Part):
    """The comparison with randomly initialized networks, or with one other network."""

    kind: str | None = None
    skipped: str | None = None
    kept: tuple[str, ...] = ()
    statistic: str | None = None
    images: int | None = None
    networks: tuple[FreshNetwork, ...] = ()
    segments: tuple[Rank, ...] = ()
    tests: tuple[Comparison, ...] = ()


class Predicted(Part):
    """A model's prediction of a layer, and its errors."""

    name: str
    stage: int | None = None
    time: float | None = None
    gain: float | None = None
    relative_error: float | None = None
    r2: float | None = None
    r2_means: float | None = None
    missed: float | None = None
    w2: float | None = None
    collapse: Collapse


class Solution(Part):
    """The solution of a model."""

    objective: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


class Model(Part):
    """The predictions of a model."""

    layers: tuple[Predicted, ...]
    skipped: str | None = None
    held_out_r2: float | None = None
    held_out_r2_means: float | None = None
    mu: float | None = None
    readout_norm: float | None = None
    solution: Solution = Solution.of({})


class Sentence(Part):
    """A sentence of a verdict, with the numbers (`evidence`) that determine its wording."""

    claim: str
    words: str
    strength: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)


class Embedded(Part):
    """The straightness of the whole network, embedded in one space."""

    space: str | None = None
    segments: tuple[Segment, ...]
    verdict: tuple[Sentence, ...] = ()


class BrenierTest(Part):
    """The number of images of the Brenier test, or the reason why it was skipped."""

    points: int
    skipped: str | None = None


class Record(Part):
    """The record of an analysis, ``analysis.json``."""

    created: str | None = None
    command: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    device: str | None = None
    provenance: Provenance
    accuracy: float | None = None
    layers: tuple[Layer, ...]
    blocks: tuple[Block, ...]
    segments: tuple[Segment, ...]
    progress: Mapping[str, Trend]
    separation: Trend = Trend.of({})
    separation_law: SeparationLaw = SeparationLaw.of({})
    learned_at: str | None = None
    geodesic_model: Model = Model.of({})
    mufm: Model = Model.of({})
    mufm_given: Model = Model.of({})
    ufm: Model = Model.of({})
    trust: Trust = Trust.of({})
    thresholds: Mapping[str, float | None] = field(default_factory=dict)
    transport_skipped: str | None = None
    embedded: Embedded = Embedded.of({})
    reference: Reference = Reference.of({})
    brenier: BrenierTest = BrenierTest.of({})
    alignment: Alignment = Alignment.of({})
    headline: Sentence = Sentence.of({})
    verdict: tuple[Sentence, ...]

    @property
    def epoch(self) -> int | None:
        """The epoch of the checkpoint; None if unknown."""
        epoch = self.provenance.epoch
        return None if isinstance(epoch, bool) else epoch

    def trend(self, metric: str) -> Trend:
        """Return the trend of a collapse metric; empty if unknown."""
        return self.progress.get(metric, Trend())

    def model(self, key: str) -> Model:
        """Return the predictions of a model; empty if it was not fitted."""
        return getattr(self, key)  # type: ignore[no-any-return]

    @property
    def last_layer(self) -> Collapse:
        """The collapse metrics of the last layer."""
        return self.layers[-1].collapse if self.layers else Collapse()

    def mismatches(self) -> Iterator[Fault]:
        """Yield the locations of lists that are valid individually but do not match each other."""
        for k, aligned in enumerate(self.alignment.segments):
            if len(aligned.blocks) < 2:
                yield Fault(f"alignment.segments[{k}].blocks")
        for k, law in enumerate(self.separation_law.segments):
            for key in ("separation", "compression", "discrimination"):
                if len(getattr(law, key)) != len(law.layers) or len(law.layers) < 2:
                    yield Fault(f"separation_law.segments[{k}].{key}")
        for k, segment in enumerate(self.segments):
            yield from _mismatches(segment, f"segments[{k}]")


class AnalysisRow(Record):
    """The record of an analysis in a series, without its per-sample parts."""

    name: str
    folder: str | None = None
    report: str | None = None


class LastLayer(Part):
    """The class means of the last layer over training."""

    layers: tuple[str, ...]
    view: View


class SeriesRecord(Part):
    """The record of a series, ``series.json``."""

    axis: str
    headline: Sentence = Sentence.of({})
    last_layer: LastLayer = LastLayer.of({})
    analyses: tuple[AnalysisRow, ...]

    def mismatches(self) -> Iterator[Fault]:
        """Yield the locations of lists that are valid individually but do not match each other."""
        for row in self.analyses:
            yield from row.mismatches()
        if self.last_layer:
            yield from _layers_mismatch(self.last_layer.layers, "last_layer")
            yield from _view_mismatches(self.last_layer.view, self.last_layer.layers, "last_layer")


def _layers_mismatch(layers: Sequence[str], location: str) -> Iterator[Fault]:
    if len(layers) < 2:
        yield Fault(f"{location}.layers")


def _mismatches(segment: Segment, location: str) -> Iterator[Fault]:
    yield from _layers_mismatch(segment.layers, location)
    for key in ("interpolation_gap", "interpolation_time"):
        if getattr(segment, key) and len(getattr(segment, key)) != len(segment.layers):
            yield Fault(f"{location}.{key}")
    size = len(segment.pairs.layers)
    for key in segment.pairs.json.keys() - {"layers"}:
        rows = getattr(segment.pairs, key, ())
        if rows and [len(row) for row in rows] != [size] * size:
            yield Fault(f"{location}.pairs.{key}")
    yield from _view_mismatches(segment.view, segment.layers, location)


def _view_mismatches(view: View, layers: Sequence[str], location: str) -> Iterator[Fault]:
    if not view:
        return
    classes = len(view.class_means[0]) if view.class_means else 0
    labels = view.labels
    if len(view.class_means) != len(layers):
        yield Fault(f"{location}.view.class_means")
    if view.points and len(view.points) != len(layers):
        yield Fault(f"{location}.view.points")
    lengths = {len(labels), len(view.points[0])} if view.points else {len(labels)}
    if len(lengths) > 1 or any(not 0 <= label < classes for label in labels):
        yield Fault(f"{location}.view.labels")
    if view.end:
        shapes = [np.shape(points) for points in (view.end.class_means, view.end.points)]
        if shapes != [(classes, shapes[0][1]), (len(labels), shapes[0][1])]:
            yield Fault(f"{location}.view.end")

"""The network compared with a reference and with models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from ..schema import Part
from .layers import Collapse
from .values import Interval


class Comparison(Part):
    """A comparison of a segment with the same segment of another network, over images."""

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

"""The layers: their collapse metrics, and the separation of the classes over depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, ClassVar

from ..schema import Part
from .values import Interval, Measured, Number, Numbers


class Collapse(Measured):
    """The collapse metrics of a layer, and why some are undefined."""

    undefined: Mapping[str, str] = field(default_factory=dict)
    class_variability: Numbers = ()
    others: ClassVar[Any] = Number


PENULTIMATE = "penultimate"
"""Name of the classifier's input, if it is a separate layer."""


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

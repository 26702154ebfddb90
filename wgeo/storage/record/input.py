"""The analyzed network and images, and how far the results can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any

from ..schema import Check, Part


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
        """Whether the network is untrained: epoch 0 of a file by wgeo (others may count from 0)."""
        whole = not isinstance(self.epoch, bool)  # otherwise unknown
        return whole and self.epoch == 0 and self.arch_from == "file"


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
    """The numbers of classes that occur in the images and that the network's head has."""

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

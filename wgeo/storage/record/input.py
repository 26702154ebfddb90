"""The analyzed network and images, and how far the rest can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any

from ..schema import Check, Part


class Claim(Part):
    """An accuracy that a checkpoint states, and the key under which it does."""

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
        """Whether the network is untrained: epoch 0, which says so only in wgeo's own files."""
        return self.epoch == 0 and self.arch_from == "file"


class Trial(Part):
    """The accuracy with another normalization."""

    name: str
    accuracy: float | None


class Normalization(Part):
    """The normalization of pixels, its source, and the trials of others."""

    name: str
    source: str
    mean: tuple[float | None, ...]
    std: tuple[float | None, ...]
    tried: tuple[Trial, ...] = ()
    better: str | None = None
    images: int | None = None


class Classes(Part):
    """The numbers of classes in the images and of the network's head."""

    present: int
    head: int | None = None


class Trust(Part):
    """The facts by which a reader can judge whether to trust the rest."""

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

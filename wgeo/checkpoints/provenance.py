"""Where a network came from, and the network with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..errors import CheckpointError
from ..models.matching import KeyReport
from ..models.parts import classifier_of

_SHOWN = 20  # names that a record lists


@dataclass(frozen=True)
class LoadReport:
    """What was found in a checkpoint and how it was read.

    Attributes
    ----------
    kind : str
        ``torch``, ``torch (before 1.6)``, ``safetensors``; ``memory`` for a network not loaded.
    container : str
        The entry of the file that held the weights; empty for a plain state dict.
    prefix : str
        What was taken off the front of every name.
    tensors, parameters : int
        Number of tensors, and of numbers in them.
    settings : mapping
        What the architecture was built with, read off the shapes.
    keys : KeyReport
        Which tensors matched, and bookkeeping that did not and need not.
    renamed : tuple of str
        Tensors that the architecture has under another name, as ``old -> new``.
    aside : tuple of str
        Tensors beside the network's that were left out, as those of a loss or a second network.
    stand_ins : tuple of str
        Classes of objects in the file that were stood in for; none of their code was run.
    notes : tuple of str
        What a reader should know: what was assumed or chosen.
    """

    kind: str = "memory"
    container: str = ""
    prefix: str = ""
    tensors: int = 0
    parameters: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    keys: KeyReport = field(default_factory=KeyReport)
    renamed: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()
    stand_ins: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a record."""
        return {
            "kind": self.kind,
            "container": self.container,
            "prefix": self.prefix,
            "tensors": self.tensors,
            "parameters": self.parameters,
            "settings": dict(self.settings),
            "keys": self.keys.to_dict(),
            "renamed": _told(self.renamed),
            "aside": _told(self.aside),
            "stand_ins": _told(self.stand_ins),
            "notes": list(self.notes),
        }


def _told(names: tuple[str, ...]) -> dict[str, Any]:
    return {"count": len(names), "first": list(names[:_SHOWN])}


@dataclass(frozen=True)
class Provenance:
    """Where a network came from.

    Attributes
    ----------
    checkpoint : str or None
        The file's path, as given.
    sha256 : str or None
        Of the file; of shards, of their hashes in order.
    arch : str
    num_classes : int or None
        None for an encoder whose file held no head.
    epoch : int or None
        When it was saved, where the file says.
    normalize : str or None
        The normalisation it was trained with (as `wgeo.data.normalization` takes it): what the
        checkpoint says, else what the architecture's published checkpoints expect.
    report : LoadReport
    normalize_source : {"file", "architecture"} or None
        Which of the two says so.
    claimed_accuracy : mapping or None
        What the file claims: ``key``, where it says so, and ``value`` in [0, 1].
    arch_from : str
        How the architecture was known: ``asked``, ``file`` (a checkpoint by wgeo), ``tensors``
        (no other architecture searched has these names and shapes), ``config`` (a ``config.json``
        beside the file) or ``module`` (a network in memory, or unpickled on trust).
    """

    checkpoint: str | None
    sha256: str | None
    arch: str
    num_classes: int | None
    epoch: int | None = None
    normalize: str | None = None
    report: LoadReport = field(default_factory=LoadReport)
    claimed_accuracy: Mapping[str, Any] | None = None
    normalize_source: str | None = None
    arch_from: str = "module"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a record."""
        return {
            "checkpoint": self.checkpoint,
            "sha256": self.sha256,
            "arch": self.arch,
            "num_classes": self.num_classes,
            "epoch": self.epoch,
            "normalize": self.normalize,
            "normalize_source": self.normalize_source,
            "claimed_accuracy": self.claimed_accuracy and dict(self.claimed_accuracy),
            "arch_from": self.arch_from,
            "report": self.report.to_dict(),
        }


@dataclass(frozen=True, eq=False)
class Network:
    """A network and its provenance."""

    module: nn.Module
    provenance: Provenance

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        *,
        arch: str | None = None,
        num_classes: int | None = None,
        normalize: str | None = None,
    ) -> Network:
        """Wrap a network that is in memory already.

        Raises
        ------
        CheckpointError
            The number of classes is not given and the network has no linear head to tell it.
        """
        head = classifier_of(module)
        if num_classes is None and head is None:
            raise CheckpointError(
                f"{type(module).__name__} has no linear classifier; say `num_classes=`."
            )
        classes = num_classes if num_classes is not None else head.out_features  # type: ignore[union-attr]
        parameters = sum(p.numel() for p in module.parameters())
        report = LoadReport(tensors=len(module.state_dict()), parameters=parameters)
        name = arch or type(module).__name__
        return cls(module, Provenance(None, None, name, classes, None, normalize, report))

    @property
    def arch(self) -> str:
        """The architecture's name."""
        return self.provenance.arch

    @property
    def num_classes(self) -> int | None:
        """Number of classes the network tells apart; None for an encoder without a head."""
        return self.provenance.num_classes

    @property
    def normalize(self) -> str | None:
        """The normalisation the network expects; None where nothing says."""
        return self.provenance.normalize

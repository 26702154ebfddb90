"""A network and its provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..errors import CheckpointError
from ..models.matching import KeyReport
from ..models.parts import classifier_of
from ..results import Displayed, Result
from ..text import first_names

_MAX_NAMES = 20  # names listed in a record
_FEW_NAMES = 2  # names listed in one line
_READING = {
    "renamed": "renamed tensors: {}",
    "aside": "tensors of other networks, ignored: {}",
    "stand_ins": "classes read as inert stand-ins: {}",
}


@dataclass(frozen=True, repr=False)
class LoadReport(Result):
    """The contents of a checkpoint and how it was read.

    Attributes
    ----------
    kind : str
        ``torch``, ``torch (before 1.6)`` or ``safetensors``, with the number of shards if there are
        several; ``memory`` for a network in memory.
    container : str
        The entry of the file that contains the weights; empty for a plain state dict.
    prefix : str
        The prefix removed from all names that have it.
    tensors, parameters : int
        Number of tensors in the state dict, and of parameters of the network.
    settings : mapping
        Settings of the architecture, inferred from the shapes or passed.
    keys : KeyReport
        Which tensors matched, and which were ignored.
    renamed : tuple of str
        Tensors whose name in the file differs from the architecture's, as ``old -> new``.
    aside : tuple of str
        Tensors without the prefix, which were ignored, such as those of a loss.
    stand_ins : tuple of str
        Classes whose objects were read as inert stand-ins.
    notes : tuple of str
        Assumptions and choices made in reading the file.
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
        """Return plain values for a record; a list of names becomes its count and the first 20."""
        values = super().to_dict()
        for key in _READING:
            names = getattr(self, key)
            values[key] = {"count": len(names), "first": list(names[:_MAX_NAMES])}
        return values


def describe_reading(report: Mapping[str, Any]) -> str:
    """Return one line on unusual steps in reading the weights, given `LoadReport.to_dict`."""
    parts = []
    if report.get("container"):
        parts.append(f"entry {report['container']!r} of the file")
    if report.get("prefix"):
        parts.append(f"prefix {report['prefix']!r} removed")
    for key, form in _READING.items():
        names = report.get(key) or {}
        if names.get("count"):
            few = first_names(names["first"], _FEW_NAMES, names["count"])
            parts.append(f"{form.format(names['count'])} ({few})")
    return "; ".join(parts)


@dataclass(frozen=True, repr=False)
class Provenance(Result):
    """The origin of a network.

    Attributes
    ----------
    checkpoint : str or None
        The file's path, as passed.
    sha256 : str or None
        Hash of the file; for shards, the hash of their hashes in order.
    arch : str
    num_classes : int or None
        None for an encoder loaded without a head.
    epoch : int or None
        The epoch at which it was saved, if the file states it.
    normalize : str or None
        The input normalization that it expects, in the format of ``normalize=``; None if unknown.
    report : LoadReport
    claimed_accuracy : mapping or None
        The accuracy that the file claims: ``key``, the entry of the file, and ``value`` in [0, 1].
    normalize_source : {"file", "architecture"} or None
        Source of `normalize`: ``file`` for the file or its folder, ``architecture`` for the
        architecture's published checkpoints; None if neither was used.
    arch_from : str
        Source of the architecture's name: ``asked`` (passed as `arch`), ``file`` (written by wgeo),
        ``tensors`` (recognized by their names and shapes), ``config`` (a ``config.json`` in the
        same folder) or ``module`` (a network in memory, or unpickled with ``trust=True``).

    Examples
    --------
    >>> import torch
    >>> import wgeo
    >>> net = wgeo.models.build("cifar_resnet20", num_classes=10)
    >>> torch.save(net.state_dict(), "resnet.pt")
    >>> provenance = wgeo.load_checkpoint("resnet.pt").provenance
    >>> provenance.checkpoint, provenance.arch, provenance.arch_from
    ('resnet.pt', 'cifar_resnet20', 'tensors')
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


@dataclass(frozen=True, eq=False, repr=False)
class Network(Displayed):
    """A network and its provenance.

    Attributes
    ----------
    module : nn.Module
    provenance : Provenance

    Examples
    --------
    >>> import torch
    >>> import wgeo
    >>> module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3))
    >>> net = wgeo.Network.from_module(module, arch="tiny", normalize="none")
    >>> net.arch, net.num_classes
    ('tiny', 3)
    """

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
        """Wrap a network that is already in memory.

        Parameters
        ----------
        module : nn.Module
        arch : str, optional
            A name for the architecture; by default that of the module's class.
        num_classes : int, optional
            By default, the number of outputs of the linear classifier.
        normalize : str, optional
            The input normalization that the network expects: a preset or ``"mean,...;std,..."``.

        Raises
        ------
        CheckpointError
            `num_classes` is not passed and the network has no linear classifier.

        Examples
        --------
        >>> import torch
        >>> import wgeo
        >>> net = wgeo.Network.from_module(torch.nn.Linear(4, 3), normalize="0.5;0.25")
        >>> net.num_classes, net.normalize, net.provenance.arch_from
        (3, '0.5;0.25', 'module')
        """
        if num_classes is None:
            head = classifier_of(module)
            if head is None:
                raise CheckpointError(
                    f"{type(module).__name__} has no linear classifier; pass `num_classes=`."
                )
            num_classes = head.out_features
        parameters = sum(p.numel() for p in module.parameters())
        report = LoadReport(tensors=len(module.state_dict()), parameters=parameters)
        name = arch or type(module).__name__
        return cls(module, Provenance(None, None, name, num_classes, None, normalize, report))

    @property
    def arch(self) -> str:
        """The architecture's name."""
        return self.provenance.arch

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None for an encoder without a head."""
        return self.provenance.num_classes

    @property
    def normalize(self) -> str | None:
        """The input normalization that the network expects; None if unknown."""
        return self.provenance.normalize

    def _description(self) -> str:
        p = self.provenance
        source = "in memory" if p.checkpoint is None else f"from {p.checkpoint}"
        classes = "without a head" if p.num_classes is None else f"{p.num_classes} classes"
        return (
            f"{p.arch} {source}, {p.report.parameters:,} parameters, {classes}, normalization "
            f"{p.normalize or 'unknown'}"
        )

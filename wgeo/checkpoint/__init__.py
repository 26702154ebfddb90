"""A file -> a network, and where it came from. Files are not trusted: no code in them runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .. import models
from ..errors import ArgumentError, CheckpointError, DependencyError
from ..files import as_path, printable
from ..models import Fit, KeyReport, classifier_of
from .contents import find_state, stripped
from .reading import read, shown

_LONGEST = 500  # characters of a setting that a file remembers

__all__ = ["LoadReport", "Network", "Provenance", "load_checkpoint"]


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
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Provenance:
    """Where a network came from.

    Attributes
    ----------
    checkpoint : str or None
        The file's path, as given.
    sha256 : str or None
        Of the file.
    arch : str
    num_classes : int
    epoch : int or None
        When it was saved, where the file says.
    normalize : str or None
        The normalisation it was trained with (as `wgeo.data.normalization` takes it): what the
        checkpoint says, else what the architecture's published checkpoints expect.
    report : LoadReport
    """

    checkpoint: str | None
    sha256: str | None
    arch: str
    num_classes: int
    epoch: int | None = None
    normalize: str | None = None
    report: LoadReport = field(default_factory=LoadReport)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a record."""
        return {
            "checkpoint": self.checkpoint,
            "sha256": self.sha256,
            "arch": self.arch,
            "num_classes": self.num_classes,
            "epoch": self.epoch,
            "normalize": self.normalize,
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
                f"{type(module).__name__} has no linear classifier; say num_classes=."
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
    def num_classes(self) -> int:
        """Number of classes the network tells apart."""
        return self.provenance.num_classes

    @property
    def normalize(self) -> str | None:
        """The normalisation the network expects; None where nothing says."""
        return self.provenance.normalize


def load_checkpoint(
    path: str | os.PathLike[str],
    arch: str | None = None,
    num_classes: int | None = None,
    *,
    trust: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Network:
    """Load a trained network.

    Reads files of ``torch.save`` (old and new) and safetensors: a plain state dict, or a dict with
    one under ``state_dict``, ``model``, ``model_state_dict``, ``net``, ``ema`` and their like, with
    any prefixes of DataParallel (``module.``), torch.compile (``_orig_mod.``) or Lightning
    (``model.``).

    Parameters
    ----------
    path : path
    arch : str, optional
        See `wgeo.models.find`. Not needed for checkpoints that wgeo wrote, nor for CIFAR ResNets
        and torchvision's ResNets, which their tensors' shapes tell.
    num_classes : int, optional
        Checked against the head, which tells it.
    trust : bool
        Unpickle whatever the file holds, **which runs code that the file names**. Needed only for
        files with a whole network or other objects in them; use it for files of your own.
    options : mapping, optional
        What neither file nor shapes say: ``{"activation": "tanh"}``, ``{"heads": 8}`` for a vit.

    Returns
    -------
    Network
        In eval mode, on the CPU, in float32; `provenance.report` says how it was read.

    Raises
    ------
    CheckpointError
        A file that cannot be read, is damaged, would run code, or holds no state dict; tensors
        missing, unexpected or misshapen (the first five of each, and the closest architecture); NaN
        or infinity in the weights.
    ArgumentError
        An unknown architecture or option.
    """
    name = shown(as_path(path, "path"))
    contents = read(path, trust=trust)
    if isinstance(contents.value, nn.Module) and arch is None:
        return _whole(contents.value, name, contents.kind, contents.sha256)
    value = contents.value
    if isinstance(value, nn.Module):
        value = {"model": value}
    found = find_state(value, name, contents.size)
    meta = _meta(value, name)
    states = list(stripped(found.state))
    notes = [f"used {found.container!r}, not {other!r}" for other in found.others]
    try:
        fitted, prefix = _fit(states, arch, num_classes, meta, options or {}, notes)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None
    except (ArgumentError, DependencyError) as error:
        if arch is not None:
            raise
        raise CheckpointError(f"{name} says what it is made of, and it fails: {error}") from None
    _check_finite(fitted.module, name)
    notes += _assumed(fitted)
    report = LoadReport(
        kind=contents.kind,
        container=found.container,
        prefix=prefix,
        tensors=len(found.state),
        parameters=sum(p.numel() for p in fitted.module.parameters()),
        settings=fitted.settings,
        keys=fitted.keys,
        notes=tuple(notes),
    )
    provenance = Provenance(
        checkpoint=name,
        sha256=contents.sha256,
        arch=fitted.arch.name,
        num_classes=fitted.settings["num_classes"],
        epoch=_epoch(value),
        normalize=_normalize(fitted, meta),
        report=report,
    )
    return Network(fitted.module, provenance)


def _whole(module: nn.Module, name: str, kind: str, sha256: str) -> Network:
    """A network unpickled whole, by leave of whoever called."""
    if isinstance(module, nn.DataParallel):
        module = module.module
    _check_finite(module, name)
    bare = Network.from_module(module.float().eval())
    notes = ("a whole network, unpickled on trust",)
    report = LoadReport(kind, "", "", bare.provenance.report.tensors,
                        bare.provenance.report.parameters, notes=notes)  # fmt: skip
    provenance = Provenance(name, sha256, bare.arch, bare.num_classes, report=report)
    return Network(module, provenance)


def _meta(value: dict[Any, Any], name: str) -> dict[str, Any]:
    """What wgeo wrote beside the weights; a file can claim anything, so each entry is checked."""
    meta = dict.get(value, "wgeo")
    if meta is None:
        return {}
    if not isinstance(meta, dict) or not isinstance(meta.get("arch"), str):
        raise CheckpointError(f"{name}: its 'wgeo' entry is damaged. Say which arch= it is.")
    if not isinstance(meta.get("options", {}), dict):
        raise CheckpointError(f"{name}: the options in its 'wgeo' entry are damaged.")
    for key, said in {**meta, **meta.get("options", {})}.items():
        if isinstance(said, str) and not (said.isprintable() and len(said) <= _LONGEST):
            raise CheckpointError(
                f"{name}: {printable(str(key))} in its 'wgeo' entry is no word: {printable(said)}."
            )
    return dict(meta)


def _fit(
    states: list[tuple[dict[str, torch.Tensor], str]],
    arch: str | None,
    num_classes: int | None,
    meta: Mapping[str, Any],
    options: Mapping[str, Any],
    notes: list[str],
) -> tuple[Fit, str]:
    """Fit the state with the plainest names; where that fails for foreign code, the others too."""
    state, prefix = states[-1]
    if arch is None:
        arch = _arch_of(meta) if meta else _recognised(state, notes)
    given = {**_remembered(arch, meta), **options}
    try:
        return models.fit(arch, state, num_classes, **given), prefix
    except CheckpointError:
        # A network of someone else may have a part called `model` of its own.
        if models.find(arch).external:
            for state, prefix in states[-2::-1]:
                try:
                    return models.fit(arch, state, num_classes, **given), prefix
                except CheckpointError:
                    continue
        raise


def _arch_of(meta: Mapping[str, Any]) -> str:
    arch = str(meta["arch"])
    home, colon, _ = arch.partition(":")
    if colon and home not in ("torchvision", "timm"):
        raise CheckpointError(
            f"it names {arch!a} as its architecture, which is code outside wgeo. A file does "
            f"not decide what runs: if it is yours, say arch={arch!a} (--arch) yourself."
        )
    return arch


def _remembered(arch: str, meta: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says of the settings that shapes don't show."""
    if meta.get("arch") != arch:
        return {}
    said = {**meta, **meta.get("options", {})}
    names = {"activation", "heads"}
    if models.find(arch).external:  # a user's own factory, named by the user: all it was built with
        names = {"in_channels", "image_size", "activation", *meta.get("options", {})}
    kinds = str | int | float
    return {k: said[k] for k in names if isinstance(k, str) and isinstance(said.get(k), kinds)}


def _recognised(state: dict[str, torch.Tensor], notes: list[str]) -> str:
    fitting = models.exact_fits(state)
    if len(fitting) == 1 and models.find(fitting[0]).settled:
        notes.append(f"recognised as {fitting[0]} by its tensors: every one fits")
        return fitting[0]
    if fitting:
        raise CheckpointError(
            f"its tensors fit {' and '.join(fitting)}, and shapes don't tell the rest "
            "(shortcuts, activation, heads). Say which with arch= (--arch)."
        )
    best = models.closest(state)
    if best is None:
        keys = ", ".join(printable(key) for key in list(state)[:5])
        raise CheckpointError(
            f"no built-in architecture is close to its tensors ({keys}, ...). Say which it is "
            "with arch= (--arch); your own network is 'package.module:factory'."
        )
    closest, report = best
    raise CheckpointError(
        f"say which architecture it is with arch= (--arch). The closest is {closest}, with "
        f"{report.share:.0%} of the tensors in common; it differs by {report.describe()}."
    )


def _assumed(fitted: Fit) -> list[str]:
    """What neither the file nor the caller said, and shapes cannot."""
    notes = []
    if fitted.settings.get("stem") == "cifar":
        notes.append("its first kernel is 3 x 3: taken for a stem of stride 1 without max-pool")
    ours = fitted.arch.name in models.ARCHS and not fitted.arch.settled
    if ours and "activation" not in fitted.settings:
        notes.append("its activation is not told: taken to be relu (options={'activation': ...})")
    return notes


def _check_finite(module: nn.Module, name: str) -> None:
    bad = [
        printable(key)
        for key, tensor in module.state_dict().items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all())
    ]
    if bad:
        more = ", ..." if len(bad) > 5 else ""
        raise CheckpointError(
            f"{name} has NaN or infinity in {len(bad)} tensors: {', '.join(bad[:5])}{more}. "
            "The training diverged or the file is damaged; take an earlier checkpoint."
        )


def _epoch(value: dict[Any, Any]) -> int | None:
    epoch = dict.get(value, "epoch")
    if isinstance(epoch, torch.Tensor) and epoch.numel() == 1:
        epoch = epoch.item()
    return epoch if isinstance(epoch, int) and not isinstance(epoch, bool) else None


def _normalize(fitted: Fit, meta: Mapping[str, Any]) -> str | None:
    if isinstance(meta.get("normalize"), str):
        return str(meta["normalize"])
    # Published checkpoints for large colour images: not one with a small stem, nor one for grey.
    usual = fitted.settings.get("stem") != "cifar" and fitted.settings.get("in_channels", 3) == 3
    return fitted.arch.normalize if usual and not meta else None

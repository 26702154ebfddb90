"""A file -> a network, and where it came from. Files are not trusted: no code in them runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError, CheckpointError, DependencyError
from ..models.huggingface import arch_of_config
from ..models.matching import Fit
from ..models.registry import ARCHS, find
from ..storage.files import as_path, printable
from .choosing import Choice, choose
from .contents import Found, find_states
from .metadata import claimed_accuracy, epoch
from .normalizing import normalization_of
from .provenance import LoadReport, Network, Provenance
from .reading import Contents, read, read_trusted, shown

_LONGEST = 500  # characters of a setting that a file remembers

__all__ = [
    "Network",
    "Provenance",
    "load_checkpoint",
]


def load_checkpoint(
    path: str | os.PathLike[str],
    arch: str | None = None,
    num_classes: int | None = None,
    *,
    trust: bool = False,
    options: Mapping[str, Any] | None = None,
    prefix: str | None = None,
    container: str | None = None,
) -> Network:
    """Load a trained network.

    Reads files of ``torch.save`` (old and new) and safetensors, in one piece or in shards: a state
    dict, a whole network, or a dict with one of these, up to five dicts down, under names with
    any prefix. Objects of other classes beside the tensors (settings, optimizers, NumPy's random
    states) are read into inert stand-ins; no code of the file is run. Weight and spectral
    normalisation and pruning masks are folded into the weights.

    Parameters
    ----------
    path : path
        A file; or a folder of ``save_pretrained``, an index of shards, or one of the shards.
    arch : str, optional
        See `wgeo.models.find`. Not needed for checkpoints that wgeo wrote, for CIFAR ResNets and
        torchvision's ResNets, which their tensors' shapes tell, nor with a ``config.json``.
    num_classes : int, optional
        Checked against the head, which tells it.
    trust : bool
        Only for a file that holds a whole network of code that is not wgeo's: unpickle it to get
        at that code, **which runs what the file names**. Use it for files of your own.
    options : mapping, optional
        What neither file nor shapes say: ``{"activation": "tanh"}``, ``{"heads": 8}`` for a vit.
    prefix : str, optional
        Which tensors are the network's, as ``encoder_q.``; needed if several prefixes fit.
    container : str, optional
        Which entry holds them, as ``state_dict_ema`` or ``ema.module``; needed if several of no
        usual name fit.

    Returns
    -------
    Network
        In eval mode, on the CPU, in float32; `provenance.report` says how it was read. Without a
        head in the file, the encoder, whose `num_classes` is None.

    Raises
    ------
    CheckpointError
        A file that cannot be read, is damaged, was made to attack, or holds no state dict; tensors
        missing, unexpected or misshapen (the first five of each, and the closest architecture);
        several networks that fit; NaN or infinity in the weights.
    ArgumentError
        An unknown architecture or option.
    """
    name = shown(as_path(path, "path"))
    contents = read(path)
    states = find_states(contents.value, name, contents.size, container)
    if trust and arch is None and states[0].whole:
        return _whole(read_trusted(path), states[0], name, contents)
    meta = _meta(contents.value, name)
    source = "asked" if arch is not None else "file" if meta else "tensors"
    try:
        if arch is None and meta:
            arch = _arch_of(meta)
        if arch is None and (named := arch_of_config(contents.config, path)) is not None:
            arch, source = named, "config"
        choice = choose(
            states,
            arch,
            num_classes,
            lambda known: {**_remembered(known, meta), **(options or {})},
            prefix,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}{_hint(states[0])}") from None
    except (ArgumentError, DependencyError) as error:
        if source == "asked":
            raise
        raise CheckpointError(f"{name} says what it is made of, and it fails: {error}") from None
    _check_finite(choice.fitted.module, name)
    normalize, told = normalization_of(choice.found.state, choice.fitted.module)
    if isinstance(meta.get("normalize"), str):
        normalize, told = str(meta["normalize"]), ()
    provenance = Provenance(
        checkpoint=name,
        sha256=contents.sha256,
        arch=choice.fitted.arch.name,
        num_classes=choice.fitted.settings["num_classes"],
        epoch=epoch(contents.value),
        normalize=normalize or _usual_normalization(choice.fitted, meta),
        report=_report(choice, contents, told),
        claimed_accuracy=claimed_accuracy(contents.value),
        normalize_source="file" if normalize else "architecture",
        arch_from=source,
    )
    return Network(choice.fitted.module, provenance)


def _report(choice: Choice, contents: Contents, told: tuple[str, ...]) -> LoadReport:
    found, view, fitted = choice.found, choice.view, choice.fitted
    notes = [*contents.notes, *choice.notes, *_assumed(fitted), *told]
    if found.whole:
        notes.append("a whole network was saved: its state dict was read, none of its code")
    if view.head:
        notes.append(f"its head is {printable(view.head)}, beside the rest")
    if fitted.keys.no_head:
        other = any(key.startswith(f"{fitted.keys.no_head}.") for key in fitted.keys.ignored)
        head = "the head in the file is no linear layer" if other else "no head in the file"
        notes.append(f"{head}: the encoder was read, and there is no accuracy")
    return LoadReport(
        kind=contents.kind,
        container=found.container,
        prefix=view.prefix,
        tensors=len(found.state),
        parameters=sum(p.numel() for p in fitted.module.parameters()),
        settings=fitted.settings,
        keys=fitted.keys,
        renamed=fitted.renamed,
        aside=view.aside,
        stand_ins=tuple(printable(each, 100) for each in contents.stand_ins),
        notes=tuple(notes),
    )


def _hint(found: Found) -> str:
    """What else there is to do if the file holds a whole network."""
    if not found.whole:
        return ""
    return (
        " The file holds a whole network; if it is yours and its code can be imported here, "
        "`trust=True` takes that code, and runs what the file names."
    )


def _whole(value: Any, found: Found, name: str, contents: Contents) -> Network:
    """A network unpickled whole, by leave of whoever called."""
    for key in filter(None, found.container.split(".")):
        value = value[0] if isinstance(value, list | tuple) else value
        value = value.get(key) if isinstance(value, dict) else getattr(value, key, None)
    module = value[0] if isinstance(value, list | tuple) else value
    if isinstance(module, nn.DataParallel):
        module = module.module
    if not isinstance(module, nn.Module):
        raise CheckpointError(f"{name} holds {type(module).__name__}, not a network.")
    _check_finite(module, name)
    bare = Network.from_module(module.float().eval())
    notes = ("a whole network, unpickled on trust",)
    report = LoadReport(contents.kind, found.container, "", bare.provenance.report.tensors,
                        bare.provenance.report.parameters, notes=notes)  # fmt: skip
    provenance = Provenance(name, contents.sha256, bare.arch, bare.num_classes, report=report)
    return Network(module, provenance)


def _meta(value: Any, name: str) -> dict[str, Any]:
    """What wgeo wrote beside the weights; a file can claim anything, so each entry is checked."""
    meta = dict.get(value, "wgeo") if isinstance(value, dict) else None
    if meta is None:
        return {}
    if not isinstance(meta, dict) or not isinstance(meta.get("arch"), str):
        raise CheckpointError(f"{name}: its 'wgeo' entry is damaged. Say which `arch=` it is.")
    if not isinstance(meta.get("options", {}), dict):
        raise CheckpointError(f"{name}: the options in its 'wgeo' entry are damaged.")
    for key, said in {**meta, **meta.get("options", {})}.items():
        if isinstance(said, str) and not (said.isprintable() and len(said) <= _LONGEST):
            raise CheckpointError(
                f"{name}: {printable(str(key))} in its 'wgeo' entry is not printable text: "
                f"{printable(said)}."
            )
    return dict(meta)


def _arch_of(meta: Mapping[str, Any]) -> str:
    arch = str(meta["arch"])
    home, colon, _ = arch.partition(":")
    if colon and home not in ("torchvision", "timm"):
        raise CheckpointError(
            f"it names {arch!a} as its architecture, which is code outside wgeo. A file does "
            f"not decide what runs: if it is yours, say `arch={arch!a}` yourself."
        )
    return arch


def _remembered(arch: str, meta: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says of the settings that shapes don't show."""
    if meta.get("arch") != arch:
        return {}
    said = {**meta, **meta.get("options", {})}
    names = {"activation", "heads"}
    if find(arch).external:  # a user's own factory, named by the user: all it was built with
        names = {"in_channels", "image_size", "activation", *meta.get("options", {})}
    kinds = str | int | float
    return {k: said[k] for k in names if isinstance(k, str) and isinstance(said.get(k), kinds)}


def _assumed(fitted: Fit) -> list[str]:
    """What neither the file nor the caller said, and shapes cannot."""
    notes = []
    if fitted.settings.get("stem") == "cifar":
        notes.append("its first kernel is 3 x 3: taken for a stem of stride 1 without max-pool")
    ours = fitted.arch.name in ARCHS and not fitted.arch.settled
    if ours and "activation" not in fitted.settings:
        notes.append("its activation is not told: taken to be relu (`options={'activation': ...}`)")
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


def _usual_normalization(fitted: Fit, meta: Mapping[str, Any]) -> str | None:
    # Published checkpoints for large colour images: not one with a small stem, nor one for grey.
    usual = fitted.settings.get("stem") != "cifar" and fitted.settings.get("in_channels", 3) == 3
    return fitted.arch.normalize if usual and not meta else None

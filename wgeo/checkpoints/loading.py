"""Load a network and its provenance from a file; code in it runs only with ``trust=True``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError, CheckpointError, DependencyError
from ..models.external import TIMM_SIZES
from ..models.huggingface import arch_of_config, normalization_of_config
from ..models.matching import Fit
from ..models.registry import ARCHS, find
from ..storage.files import as_path
from ..text import first_names, printable
from .choosing import Choice, choose, require_one_network
from .contents import SavedState, View, find_states, only_item
from .normalizing import normalization_of
from .provenance import LoadReport, Network, Provenance
from .reading import Contents, display_path, read, read_trusted
from .standins import as_array

_MAX_LENGTH = 500  # characters of a setting stored in a file
_MAX_SIDE = 2048  # pixels; the attention masks of a Swin transformer for 100,000 would take 150 GB
_MAX_LEVELS = 3  # levels of nested dicts that are searched, including the top level
_MAX_ENTRIES = 10_000  # entries of a dict that are searched
_MAX_NESTED = 100  # dicts in a dict that are searched
_PREFIX = r"((best|max|final|test|val|valid|validation|eval|dev)_)*"
_ACCURACY = re.compile(
    _PREFIX + r"(acc|accuracy|prec|precision|top)(_?@?_?1)?(_(test|val|valid|eval|best|top_?1))*",
    re.IGNORECASE,
)
# "top", "prec" and "precision" without a 1 may mean something else.
_UNAMBIGUOUS = re.compile(r"acc|1", re.IGNORECASE)


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

    The file is one of ``torch.save`` (old or new format) or safetensors, and may be sharded. It
    contains a state dict, a whole pickled network, or a dict with one of these, nested up to five
    levels deep. Tensor names may have any prefix. No code in the file is run unless `trust` is set:
    objects other than tensors and plain containers, such as optimizers, are read as inert
    stand-ins. Weight normalization, spectral normalization and pruning masks are folded into the
    weights.

    Parameters
    ----------
    path : path
        A file, a folder written by ``save_pretrained``, an index of shards, or one of the shards.
    arch : str, optional
        A name from ``wgeo list archs``, ``torchvision:NAME``, ``timm:NAME``, ``hf:FOLDER``, or your
        own function as ``package.module:factory``. Not needed for checkpoints written by wgeo, for
        CIFAR ResNets and torchvision ResNets (recognized by their tensors' shapes), or if there is
        a ``config.json``.
    num_classes : int, optional
        By default, the size of the head; a different number raises an error.
    trust : bool
        Unpickle a whole network with its own code, **which runs whatever the file names**. Use it
        only for your own files. It has no effect on a state dict, or if `arch` is passed.
    options : mapping, optional
        Settings that neither the file nor the shapes determine: ``{"activation": "tanh"}``,
        ``{"heads": 8}`` for a vit, ``{"img_size": 32}`` for a timm network, or any argument of your
        own function.
    prefix : str, optional
        Prefix of the network's tensor names, such as ``encoder_q.``; needed if several fit.
    container : str, optional
        Entry of the file that contains the state dict, such as ``state_dict_ema`` or
        ``ema.module``; needed if several entries with unusual names fit.

    Returns
    -------
    Network
        In eval mode, on the CPU, in float32; ``provenance.report`` describes how it was read. If
        the file has no linear head, only the encoder is returned, and `num_classes` is None.

    Raises
    ------
    CheckpointError
        The file cannot be read, is damaged or malicious, or contains no state dict; tensors are
        missing, unexpected or have the wrong shape (the message lists the first five of each, and
        the closest architecture); several different networks fit; or a weight is NaN or infinite.
    ArgumentError
        The architecture or an option is unknown.
    DependencyError
        `arch` needs timm or transformers, which is not installed.

    Examples
    --------
    >>> import torch
    >>> import wgeo
    >>> net = wgeo.models.build("cifar_resnet20", num_classes=10)
    >>> torch.save({"state_dict": net.state_dict(), "epoch": 7}, "resnet.pt")
    >>> loaded = wgeo.load_checkpoint("resnet.pt")
    >>> loaded.arch, loaded.num_classes, loaded.provenance.epoch
    ('cifar_resnet20', 10, 7)
    """
    name = display_path(as_path(path, "path"))
    contents = read(path)
    states = find_states(contents.value, name, contents.size, container)
    if trust and arch is None and states[0].whole:
        return _whole(path, states, name, contents)
    meta, ignored = _meta(contents.value, name, arch)
    source = "asked" if arch is not None else "file" if meta else "tensors"
    try:
        if arch is None and meta:
            arch = _arch_of(meta)
        if arch is None and (config_arch := arch_of_config(contents.config, path)) is not None:
            arch, source = config_arch, "config"
        choice = choose(
            states,
            arch,
            num_classes,
            lambda name: {**_stored_settings(name, meta), **(options or {})},
            prefix,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}{_hint(states[0])}") from None
    except (ArgumentError, DependencyError) as error:
        if source == "asked":
            raise
        raise CheckpointError(
            f"{name} names its own architecture, which cannot be built: {error}"
        ) from None
    _check_finite(choice.fit.module, name)
    normalize, notes = normalization_of(choice.saved.state, choice.fit.module)
    if isinstance(meta.get("normalize"), str):
        normalize, notes = str(meta["normalize"]), ()
    if normalize is None:
        normalize = normalization_of_config(contents.config, path)
    usual = None if meta or ignored else _usual_normalization(choice.fit)
    provenance = Provenance(
        checkpoint=name,
        sha256=contents.sha256,
        arch=choice.fit.arch.name,
        num_classes=choice.fit.settings["num_classes"],
        epoch=_epoch(contents.value),
        normalize=normalize or usual,
        report=_report(choice, contents, (*_assumptions(choice.fit, meta), *ignored, *notes)),
        claimed_accuracy=claimed_accuracy(contents.value),
        normalize_source="file" if normalize else "architecture" if usual else None,
        arch_from=source,
    )
    return Network(choice.fit.module, provenance)


def _report(choice: Choice, contents: Contents, extra: tuple[str, ...]) -> LoadReport:
    saved, view, fit = choice.saved, choice.view, choice.fit
    notes = [*contents.notes, *choice.notes, *extra]
    if saved.whole:
        notes.append("the file contains a whole network: its state dict was read, none of its code")
    if view.head:
        notes.append(f"its head, {printable(view.head)}, is outside the prefix")
    if fit.keys.no_head:
        other = any(key.startswith(f"{fit.keys.no_head}.") for key in fit.keys.ignored)
        head = "the head in the file is not a linear layer" if other else "no head in the file"
        notes.append(f"{head}: only the encoder was read, so there is no accuracy")
    return LoadReport(
        kind=contents.kind,
        container=saved.container,
        prefix=view.prefix,
        tensors=len(saved.state),
        parameters=sum(p.numel() for p in fit.module.parameters()),
        settings=fit.settings,
        keys=fit.keys,
        renamed=fit.renamed,
        aside=view.aside,
        stand_ins=tuple(printable(each, 100) for each in contents.stand_ins),
        notes=tuple(notes),
    )


def _hint(saved: SavedState) -> str:
    if not saved.whole:
        return ""
    return (
        " The file contains a whole pickled network; if it is yours and its code can be imported "
        "here, `trust=True` without `arch=` unpickles it with that code, which runs whatever the "
        "file names."
    )


def _whole(
    path: str | os.PathLike[str], states: list[SavedState], name: str, contents: Contents
) -> Network:
    """Unpickle the whole network that is the most likely one; see `choose`."""
    saved = states[0]
    if not saved.usual:
        try:
            require_one_network([(each, View(each.state, "")) for each in states if each.whole])
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}") from None
    value = read_trusted(path)
    for key in saved.keys:
        value = only_item(value)
        if isinstance(value, list | tuple):
            value = value[int(key)]
        else:
            value = value.get(key) if isinstance(value, dict) else getattr(value, key, None)
    module = only_item(value)
    if isinstance(module, nn.DataParallel):
        module = module.module
    if not isinstance(module, nn.Module):
        raise CheckpointError(f"{name} contains {type(module).__name__}, not a network.")
    _check_finite(module, name)
    bare = Network.from_module(module.float().eval())
    notes = ("a whole network, unpickled with `trust=True`",)
    report = bare.provenance.report
    report = replace(report, kind=contents.kind, container=saved.container, notes=notes)
    return replace(
        bare,
        provenance=replace(bare.provenance, checkpoint=name, sha256=contents.sha256, report=report),
    )


def _meta(value: Any, name: str, arch: str | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the intact metadata stored by wgeo, and notes; damage is an error without `arch`."""
    meta = dict.get(value, "wgeo") if isinstance(value, dict) else None
    if meta is None:
        return {}, ()
    intact, problems = _intact(meta)
    if problems and arch is None:
        raise CheckpointError(f"{name}: {problems[0]}. Pass `arch=`.")
    return intact, tuple(f"{problem}: it was ignored" for problem in problems)


def _intact(meta: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the intact metadata, and what is wrong with the rest: a file can claim anything."""
    if not isinstance(meta, dict):
        return {}, ["its 'wgeo' entry is damaged"]
    intact, problems = _with_plain_text(meta)
    if not isinstance(meta.get("arch"), str):
        intact.pop("arch", None)
        problems.append("its 'wgeo' entry is damaged and names no architecture")
    options = intact.pop("options", {})
    if not isinstance(options, dict):
        return intact, [*problems, "the options in its 'wgeo' entry are damaged"]
    intact["options"], others = _with_plain_text(options)
    return intact, [*problems, *others]


def _with_plain_text(entries: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the entries without long or unprintable text, and what is wrong with the others."""
    plain, problems = {}, []
    for key, value in entries.items():
        if not isinstance(value, str) or (value.isprintable() and len(value) <= _MAX_LENGTH):
            plain[key] = value
        else:
            problems.append(f"{printable(str(key))} in its 'wgeo' entry is not printable text")
    return plain, problems


def _arch_of(meta: Mapping[str, Any]) -> str:
    arch = str(meta["arch"])
    library, colon, _ = arch.partition(":")
    if colon and library not in ("torchvision", "timm"):
        raise CheckpointError(
            f"it names {arch!a} as its architecture, which is code outside wgeo. A file must not "
            f"decide which code runs: if it is yours, pass `arch={arch!a}`."
        )
    return arch


def _stored_settings(arch: str, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in the file's metadata that shapes do not determine."""
    if meta.get("arch") != arch:
        return {}
    stored = {**meta, **meta.get("options", {})}
    kind = arch.partition(":")[0]
    names = {"activation"} | {"vit": {"heads"}, "timm": TIMM_SIZES}.get(kind, set())
    side = stored.get("img_size")
    if not (isinstance(side, int) and 0 < side <= _MAX_SIDE):
        names -= {"img_size"}
    if find(arch).user_code:  # every argument of the user's factory
        names = {"in_channels", "image_size", "activation", *meta.get("options", {})}
    kinds = str | int | float
    return {k: stored[k] for k in names if isinstance(k, str) and isinstance(stored.get(k), kinds)}


def _assumptions(fit: Fit, meta: Mapping[str, Any]) -> list[str]:
    """Return notes on settings that had to be assumed."""
    notes = []
    if fit.settings.get("stem") == "cifar":
        notes.append(
            "its first kernel is 3 x 3: assumed to be a stem of stride 1 without max-pooling"
        )
    ours = fit.arch.name in ARCHS and not fit.arch.determined_by_shapes
    if ours and "activation" not in fit.settings:
        notes.append(
            "its activation is unknown: assumed to be relu (`options={'activation': ...}`)"
        )
    # Networks that wgeo trained without this option have the default.
    if fit.arch.name == "vit" and "heads" not in fit.settings and meta.get("arch") != "vit":
        heads = next(m.num_heads for m in fit.module.modules() if hasattr(m, "num_heads"))
        notes.append(
            f"its number of attention heads is unknown: assumed to be {heads} "
            "(`options={'heads': ...}`)"
        )
    return notes


def _check_finite(module: nn.Module, name: str) -> None:
    nonfinite = [
        key
        for key, value in module.state_dict().items()  # a module's extra state can have any type
        if isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and not bool(torch.isfinite(value.float()).all())
    ]
    if nonfinite:
        raise CheckpointError(
            f"{name} has NaN or infinity in {len(nonfinite)} tensors: {first_names(nonfinite, 5)}. "
            "The training diverged or the file is damaged; use an earlier checkpoint."
        )


def _usual_normalization(fit: Fit) -> str | None:
    """Return the normalization of the architecture's published checkpoints, if it can apply."""
    # Published checkpoints are for color images and, if there is a choice of stem, for large ones.
    usual = fit.settings.get("stem") != "cifar" and fit.settings.get("in_channels", 3) == 3
    return fit.arch.normalize if usual else None


def _number(value: Any) -> int | float | None:
    """Return a number, also from a tensor or NumPy array with one entry; None for other values.

    Numbers beyond 2^53 count as missing.
    """
    if isinstance(value, torch.Tensor):
        value = torch.Tensor.detach(value)  # drops attributes that could hide its methods
        plain = value.layout == torch.strided and not value.is_meta and not value.is_complex()
        value = value.item() if plain and value.numel() == 1 else None
    elif (array := as_array(value)) is not None:
        value = array.item() if array.size == 1 else None
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 2**53:
        return None
    return value


def _epoch(value: Any) -> int | None:
    """Return the integer ``epoch`` at the top level of a file's contents, or None."""
    number = _number(dict.get(value, "epoch")) if isinstance(value, dict) else None
    return number if isinstance(number, int) else None


def claimed_accuracy(value: Any) -> dict[str, Any] | None:
    """Return the accuracy that a file claims, or None.

    ``key`` is the entry, such as ``metrics.val_acc``, and ``value`` is in [0, 1]. A number above 1
    is read as a percentage; numbers outside 0 to 100 are skipped. Of several accuracies, the first
    at the top level is returned, or else the first nested one.
    """
    for key, claim in _claims(value, "", _MAX_LEVELS):
        if claim is not None and 0 <= claim <= 100:
            return {"key": key, "value": claim / 100 if claim > 1 else float(claim)}
    return None


def _claims(value: Any, path: str, depth: int) -> Iterator[tuple[str, int | float | None]]:
    if not isinstance(value, dict) or depth == 0:
        return
    nested = []
    for key, entry in list(dict.items(value))[:_MAX_ENTRIES]:
        if not isinstance(key, str):
            continue
        entry_path = f"{path}.{printable(key)}" if path else printable(key)
        if isinstance(entry, dict):
            nested.append((entry_path, entry))
        elif _ACCURACY.fullmatch(re.sub(r"[/. -]", "_", key)) and _UNAMBIGUOUS.search(key):
            yield entry_path, _number(entry)
    for entry_path, entry in nested[:_MAX_NESTED]:
        yield from _claims(entry, entry_path, depth - 1)

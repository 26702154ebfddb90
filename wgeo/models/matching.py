"""A state dict meets an architecture: what fits, what does not, and which one would."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError, CheckpointError
from ..storage.files import printable
from .etf import with_etf_classifier
from .external import HEADS, VITS, Arch
from .parts import State, count, head_of, without_head
from .registry import ARCHS, find

_SHOWN = 5
# Written by batch norm, weight averaging and profilers; they change no output in eval mode.
_BOOKKEEPING = re.compile(r"(^|\.)(num_batches_tracked|n_averaged|total_ops|total_params)$")
# What self-supervised training and transformers keep where a classifier would have its head.
_PROJECTOR = re.compile(r"(fc|head|pooler|predictor|prototypes|proj\w*)\.")
_IN_SEQUENCE = re.compile(r"((?:fc|linear)\.)(\d+)\.(weight|bias)")
_CLOSE = 0.2  # share of tensors in common below which no architecture is worth naming


@dataclass(frozen=True)
class KeyReport:
    """How the tensors of a file and of a network correspond.

    Attributes
    ----------
    missing, unexpected : tuple of str
        Names only the network, and only the file, has.
    misshapen : tuple of str
        Names both have with another shape (or with whole numbers for weights), both told.
    ignored : tuple of str
        Bookkeeping tensors on one side only, which change no output.
    matched : int
        Number of tensors that fit.
    no_head : str
        The network's head, if it alone is missing: the encoder fits. Empty otherwise.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    matched: int = 0
    no_head: str = ""

    @property
    def fits(self) -> bool:
        """Whether every tensor has its place."""
        return not (self.missing or self.unexpected or self.misshapen)

    @property
    def share(self) -> float:
        """Tensors that fit, as a share of all names on either side; in [0, 1]."""
        others = len(self.missing) + len(self.unexpected) + len(self.misshapen)
        return self.matched / max(1, self.matched + others)

    def describe(self) -> str:
        """Return the differences in words, the first five of each kind."""
        kinds = (("missing", self.missing), ("unexpected", self.unexpected))
        parts = [_listed(f"{len(keys)} {kind}", keys) for kind, keys in kinds if keys]
        if self.misshapen:
            parts.append(_listed(f"{len(self.misshapen)} misshapen", self.misshapen, "; "))
        return ". ".join(parts) or "every tensor fits"

    def to_dict(self) -> dict[str, Any]:
        """Return counts and the first five names of each kind."""
        kinds = ("missing", "unexpected", "misshapen", "ignored")
        found: dict[str, Any] = {
            kind: {"count": len(getattr(self, kind)), "first": list(getattr(self, kind)[:_SHOWN])}
            for kind in kinds
        }
        return {"matched": self.matched, **found}


def _listed(what: str, keys: tuple[str, ...], between: str = ", ") -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{what}: {between.join(keys[:_SHOWN])}{more}"


def compare_keys(network: State, state: State) -> KeyReport:
    """Compare the tensors a network has with those of a file, by name, shape and kind."""
    matched = 0
    missing: list[str] = []
    unexpected: list[str] = []
    misshapen: list[str] = []
    ignored: list[str] = []
    for key, tensor in network.items():
        name = printable(key)
        if key not in state:
            (ignored if _BOOKKEEPING.search(key) else missing).append(name)
            continue
        found = state[key]
        if found.shape != tensor.shape:
            told = f"the file has {_shape(found)}, the network {_shape(tensor)}"
            misshapen.append(f"{name} ({told})")
        elif tensor.is_floating_point() and not found.is_floating_point():
            misshapen.append(f"{name} (the file has {found.dtype}, the network {tensor.dtype})")
        else:
            matched += 1
    for key in state:
        if key not in network:
            (ignored if _BOOKKEEPING.search(key) else unexpected).append(printable(key))
    return KeyReport(tuple(missing), tuple(unexpected), tuple(misshapen), tuple(ignored), matched)


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"


@dataclass(frozen=True, eq=False)
class Fit:
    """A network that carries a state dict's weights, and how it came to.

    Attributes
    ----------
    module : nn.Module
        In eval mode.
    arch : Arch
    settings : dict
        What the architecture was built with, read off the shapes.
        ``num_classes`` is None for an encoder without a head.
    keys : KeyReport
    renamed : tuple of str
        Tensors that the file has under another name, as ``old -> new``.
    """

    module: nn.Module
    arch: Arch
    settings: dict[str, Any]
    keys: KeyReport
    renamed: tuple[str, ...] = ()


def from_state(name: str, state: State, num_classes: int | None = None, **given: Any) -> nn.Module:
    """Build the network that fits a state dict, and load it.

    Depth, width, channels, classes, shortcut option and stem are read off the tensors' shapes.

    Parameters
    ----------
    name : str
        As `find` takes it.
    state : mapping of str to Tensor
        Without wrappers' prefixes.
    num_classes : int, optional
        Default what the head's shape says.
    **given
        What shapes don't show: ``activation`` (default relu), a vit's ``heads``; whatever a
        factory of yours takes.

    Raises
    ------
    CheckpointError
        Tensors are missing, unexpected or misshapen (the first five of each are named), with the
        architecture that would fit, or come closest.
    ArgumentError
        An unknown architecture or setting.
    """
    return fit(name, state, num_classes, **given).module


def fit(name: str, state: State, num_classes: int | None = None, **given: Any) -> Fit:
    """Do what `from_state` does and say how; same parameters and errors."""
    arch = find(name)
    names = _names(arch, state)
    state = {names[key]: tensor for key, tensor in state.items()}
    settings = _settings(arch, state, num_classes, given)
    with torch.random.fork_rng(devices=[]):
        if arch.translate is not None:
            state = arch.translate(state, settings)
        report, module, heads = _compared(arch, settings, state)
        if not report.fits:
            raise CheckpointError(_misfit(arch, settings, report, state, num_classes))
        if module is None:
            module = _dressed(arch.build(**settings), state)
    if report.no_head:
        module = without_head(module, report.no_head)
        settings["num_classes"] = None
    state = {heads.get(key, key): tensor for key, tensor in state.items()}
    own = module.state_dict()
    weights = OrderedDict((key, state[key]) for key in own if key in state)
    weights._metadata = own._metadata  # type: ignore[attr-defined]  # torchvision's MNASNet asks
    module.load_state_dict(weights, strict=False)
    renamed = {old: heads.get(new, new) for old, new in names.items()}
    told = tuple(f"{printable(old)} -> {new}" for old, new in renamed.items() if old != new)
    return Fit(module.eval(), arch, settings, report, told)


def exact_fits(state: State) -> list[str]:
    """Return the names of all architectures searched that a state dict fits to the last tensor.

    Those that fit but for a missing head count only if none fits with its head.
    """
    fitting = {name: report for name, report in _ranked(state) if report.fits}
    whole = [name for name, report in fitting.items() if not report.no_head]
    return whole or list(fitting)


def closest(state: State) -> tuple[str, KeyReport] | None:
    """Return the built-in architecture that a state dict comes closest to; None if none is close.

    Closest is the largest share of tensors that agree in name and shape, among wgeo's own
    architectures and torchvision's ResNets.
    """
    ranked = _ranked(state)
    return ranked[0] if ranked and ranked[0][1].share >= _CLOSE else None


def _ranked(state: State) -> list[tuple[str, KeyReport]]:
    """Every architecture whose mark the state bears, with its differences, the best first."""
    reports = []
    depth = 6 * count(state, "layer1") + 2  # a CIFAR ResNet of any depth
    unusual = [f"cifar_resnet{depth}"] if 8 <= depth <= 2000 else []
    known: dict[tuple[tuple[str, str], ...], dict[str, torch.Tensor]] = {}
    for name in dict.fromkeys([*ARCHS, *unusual, *(f"torchvision:{vit}" for vit in VITS)]):
        arch = find(name)
        if arch.rename not in known:  # ten of torchvision's have the same
            names = _names(arch, state)
            known[arch.rename] = {names[key]: tensor for key, tensor in state.items()}
        renamed = known[arch.rename]
        if not any(re.search(arch.mark, key) for key in renamed):
            continue
        try:
            settings = _settings(arch, renamed, None, {})
            reports.append((name, _compared(arch, settings, renamed)[0]))
        except ArgumentError:  # shapes that nothing can be built from: not this one
            continue
    return sorted(reports, key=lambda pair: -pair[1].share)


def _settings(
    arch: Arch, state: State, num_classes: int | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    settings = arch.infer(state, given)
    if num_classes is not None:
        settings["num_classes"] = num_classes
    if arch.external:
        return {**settings, **given}
    unknown = sorted(set(given) - {"activation", "heads"})
    if unknown:
        raise ArgumentError(
            f"{', '.join(unknown)} is told by the checkpoint's shapes. What they don't tell, and "
            "can be given, is the activation and a vit's heads."
        )
    if "activation" in given:
        settings["activation"] = given["activation"]
    return settings


def _compared(
    arch: Arch, settings: dict[str, Any], state: State
) -> tuple[KeyReport, nn.Module | None, dict[str, str]]:
    """Compare with a network that has shapes only, so that no file can ask for memory.

    A user's own factory may not manage to build such a network, nor do torchvision's RegNets, which
    compute their widths with tensors: these are built for real, and returned. With it comes what a
    head of another name is called in the network.
    """
    if not arch.external:
        try:
            with torch.device("meta"):
                shapes = _dressed(_shapes(arch.name, tuple(settings.items())), state)
            report, heads = _matched(shapes, state)
            return report, None, heads
        except NotImplementedError:  # "Cannot copy out of meta tensor; no data!"
            pass
        except (RuntimeError, ValueError, OverflowError) as error:
            raise ArgumentError(f"{arch.name} cannot be built with {settings}: {error}") from error
    module = _dressed(arch.build(**settings), state)
    report, heads = _matched(module, state)
    return report, module, heads


def _matched(net: nn.Module, state: State) -> tuple[KeyReport, dict[str, str]]:
    """Compare names, a head under another usual name and a missing one allowed for."""
    own, found = net.state_dict(), head_of(net)
    if found is None:
        return compare_keys(own, state), {}
    head = found[0]
    renamed: dict[str, str] = {}
    if f"{head}.weight" not in state:
        others = [each for each in HEADS if f"{each}.weight" in state.keys() - own.keys()]
        others = [each for each in others if state[f"{each}.weight"].ndim == 2]
        if len(others) == 1:
            renamed = {f"{others[0]}.{part}": f"{head}.{part}" for part in ("weight", "bias")}
    report = compare_keys(own, {renamed.get(key, key): t for key, t in state.items()})
    # What lies under the head's name and is no linear layer is a projector of its training.
    beside = all(key.startswith(f"{head}.") or _PROJECTOR.match(key) for key in report.unexpected)
    lost = {f"{head}.weight", f"{head}.bias"}
    only = f"{head}.weight" in report.missing and lost >= set(report.missing)
    if only and beside and not report.misshapen:
        ignored = report.ignored + report.unexpected
        return replace(report, missing=(), unexpected=(), ignored=ignored, no_head=head), {}
    return report, renamed


@lru_cache(maxsize=32)  # a search and the fit after it, and several checkpoints of one network
def _shapes(name: str, settings: tuple[tuple[str, Any], ...]) -> nn.Module:
    return find(name).build(**dict(settings))


def _dressed(net: nn.Module, state: State) -> nn.Module:
    """Give the network a fixed simplex-ETF head where the state's head has no bias."""
    found = head_of(net)
    if found is None:
        return net
    name, head = found
    weight = state.get(f"{name}.weight")
    if head.bias is None or f"{name}.bias" in state or weight is None or weight.ndim != 2:
        return net
    narrow = weight.shape[0] == weight.shape[1] != head.in_features
    try:
        return with_etf_classifier(net, "K" if narrow else "keep")
    except ArgumentError:
        return net


def _names(arch: Arch, state: State) -> dict[str, str]:
    """Return what a file's names are in the architecture; the same if two would become one."""
    names = {}
    for key in state:
        name = key
        for pattern, replacement in arch.rename:
            name = re.sub(pattern, replacement, name)
        names[key] = name
    if arch.rename:
        names |= _last_of_sequence(names, state)
    return names if len(set(names.values())) == len(names) else {key: key for key in state}


def _last_of_sequence(names: Mapping[str, str], state: State) -> dict[str, str]:
    """New names of a head that is the only layer with weights of a Sequential: behind a dropout."""
    found = {key: _IN_SEQUENCE.fullmatch(name) for key, name in names.items()}
    parts = {key: match for key, match in found.items() if match}
    alone = len({match[2] for match in parts.values()}) == 1
    flat = any(state[key].ndim == 2 for key in parts)
    return {key: match[1] + match[3] for key, match in parts.items()} if alone and flat else {}


def _misfit(
    arch: Arch,
    settings: dict[str, Any],
    report: KeyReport,
    state: State,
    num_classes: int | None,
) -> str:
    said = f"The checkpoint does not fit {arch.name}: {report.describe()}."
    inferred = arch.infer(state, {})["num_classes"]
    if num_classes is not None and num_classes != inferred:
        said += f" Its head has {inferred} classes, and num_classes is {num_classes}."
    best = closest(state)
    if best is None:
        return said + " None of the built-in architectures is close; see `wgeo list archs`."
    name, found = best
    if name == arch.name:
        return said + " No other built-in architecture comes closer."
    if found.fits:
        return said + f" It fits {name}: use `arch={name!r}`."
    return said + f" The closest is {name}, with {found.share:.0%} of the tensors in common."

"""Match state dicts with architectures, and report differences."""

from __future__ import annotations

import importlib
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError, CheckpointError
from ..results import Result
from ..text import percent, printable
from .etf import with_etf_classifier
from .external import ANY_HEAD, HEADS, TIMM_SIZES, VITS, Arch
from .parts import State, count_children, head_of, require_positive, shapes_only, without_head
from .registry import ARCHS, find

_MAX_LISTED = 5  # names in a message
# Tensors of batch norm, weight averaging and profilers, which affect no output in eval mode.
_BOOKKEEPING = re.compile(r"(^|\.)(num_batches_tracked|n_averaged|total_ops|total_params)$")
# Parts that self-supervised networks and transformers have instead of a classifier.
_PROJECTOR = re.compile(r"(fc|head|pooler|predictor|prototypes|proj\w*)\.")
# Name of a classifier outside the backbone, but not of a projector.
_HEAD_WORDS = re.compile(
    r"(?!\w*(proj|embed|contrast))(\w*(logit|class|cls|output|final|fc|linear)\w*|out|preds?)"
)
_MAX_HEAD_NAME = 40  # characters, since a file may contain names of any length
_STATISTICS = re.compile(r".*\.running_(mean|var)")
_SEQUENTIAL_HEAD = re.compile(r"((?:fc|linear)\.)(\d+)\.(weight|bias)")
_MIN_MATCHED = 0.2  # smallest fraction of common tensors for which an architecture is suggested


@dataclass(frozen=True, repr=False)
class KeyReport(Result):
    """The correspondence between the tensors of a file and of a network.

    Attributes
    ----------
    missing : tuple of str
        Names only in the network.
    unexpected : tuple of str
        Names only in the file.
    misshapen : tuple of str
        Names in both for which the shapes differ, or the file has integers instead of floats. Both
        shapes or dtypes follow the name.
    ignored : tuple of str
        Names in one only that do not matter: bookkeeping tensors and, if `no_head` is set, the
        parts that the file has instead of the head.
    matched : int
        Number of tensors that fit.
    no_head : str
        Name of the network's head if only that is missing; else empty.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    matched: int = 0
    no_head: str = ""

    @property
    def fits(self) -> bool:
        """Whether all tensors correspond, except ignored ones."""
        return not (self.missing or self.unexpected or self.misshapen)

    @property
    def matched_fraction(self) -> float:
        """Tensors that fit, as a fraction of all names that are not ignored; in [0, 1]."""
        others = len(self.missing) + len(self.unexpected) + len(self.misshapen)
        return self.matched / max(1, self.matched + others)

    def describe(self) -> str:
        """Return the differences as text, the first five of each kind."""
        kinds = (("missing", self.missing), ("unexpected", self.unexpected))
        parts = [_list_names(f"{len(keys)} {kind}", keys) for kind, keys in kinds if keys]
        if self.misshapen:
            parts.append(_list_names(f"{len(self.misshapen)} misshapen", self.misshapen, "; "))
        if self.missing and all(map(_STATISTICS.fullmatch, self.missing)):
            parts.append(
                "The file has parameters but no statistics of batch normalization, which is usual "
                "for averaged parameters: load it into the trained network, and save that "
                "network's state dict"
            )
        return ". ".join(parts) or "every tensor fits"

    def to_dict(self) -> dict[str, Any]:
        """Return the number of names of each kind, and the first five."""
        counts: dict[str, Any] = {"matched": self.matched}
        for kind in ("missing", "unexpected", "misshapen", "ignored"):
            keys = getattr(self, kind)
            counts[kind] = {"count": len(keys), "first": list(keys[:_MAX_LISTED])}
        return counts


def _list_names(kind: str, keys: tuple[str, ...], separator: str = ", ") -> str:
    more = f" and {len(keys) - _MAX_LISTED} more" if len(keys) > _MAX_LISTED else ""
    return f"{kind}: {separator.join(keys[:_MAX_LISTED])}{more}"


def compare_keys(network: State, state: State) -> KeyReport:
    """Compare the tensors of a network with those of a file, by name, shape and dtype."""
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
        stored = state[key]
        if stored.shape != tensor.shape:
            shapes = f"the file has {_shape(stored)}, the network {_shape(tensor)}"
            misshapen.append(f"{name} ({shapes})")
        elif tensor.is_floating_point() and not stored.is_floating_point():
            misshapen.append(f"{name} (the file has {stored.dtype}, the network {tensor.dtype})")
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
    """A network with the weights of a state dict, and details of the match."""

    module: nn.Module  # in eval mode
    arch: Arch
    settings: dict[str, Any]  # inferred or passed; without a head, num_classes is None
    keys: KeyReport
    renamed: tuple[str, ...] = ()  # tensors with other names in the file, as "old -> new"


def from_state(
    name: str, state: State, num_classes: int | None = None, **options: Any
) -> nn.Module:
    """Build the network that fits a state dict, and load the weights.

    Parameters
    ----------
    name : str
        A name that `find` accepts.
    state : mapping of str to Tensor
        Without prefixes of wrappers.
    num_classes : int, optional
        By default, inferred from the head's shape.
    **options
        Settings that shapes do not determine: ``activation`` (default relu), ``heads`` of a vit,
        ``img_size`` of a timm network, or any argument of your own factory.

    Raises
    ------
    CheckpointError
        Tensors are missing, unexpected or misshapen. The message names the first five of each, and
        the architecture that fits or is closest.
    ArgumentError
        The architecture or a setting is unknown.
    DependencyError
        timm or transformers is needed but not installed.
    """
    return fit(name, state, num_classes, **options).module


def fit(name: str, state: State, num_classes: int | None = None, **options: Any) -> Fit:
    """Build a network as `from_state` does, and return details of the match as well."""
    if num_classes is not None:
        require_positive(num_classes=num_classes)
    arch = find(name)
    names = _new_names(arch, state)
    state = {names[key]: tensor for key, tensor in state.items()}
    settings = _settings(arch, state, num_classes, options)
    with torch.random.fork_rng(devices=[]):
        if arch.translate is not None:
            state = arch.translate(state, settings)
        report, module, heads = _compare(arch, settings, state)
        if not report.fits:
            raise CheckpointError(_misfit_message(arch, settings, report, state, num_classes))
        if module is None:
            module = _with_fixed_head(arch.build(**settings), state)
    if report.no_head:
        module = without_head(module, report.no_head)
        settings["num_classes"] = None
    state = {heads.get(key, key): tensor for key, tensor in state.items()}
    new_state = module.state_dict()
    weights = OrderedDict((key, state[key]) for key in new_state if key in state)
    weights._metadata = new_state._metadata  # type: ignore[attr-defined]  # torchvision's MNASNet needs it
    module.load_state_dict(weights, strict=False)
    renamed = {old: heads.get(new, new) for old, new in names.items()}
    changes = tuple(f"{printable(old)} -> {new}" for old, new in renamed.items() if old != new)
    return Fit(module.eval(), arch, settings, report, changes)


def exact_fits(state: State) -> list[str]:
    """Return the names of all architectures that fit a state dict exactly.

    The same architectures are searched as by `closest`. If none fits completely, those that fit
    except for a missing head are returned.
    """
    reports = {name: report for name, report in _rank(state) if report.fits}
    complete = [name for name, report in reports.items() if not report.no_head]
    return complete or list(reports)


def closest(state: State) -> tuple[str, KeyReport] | None:
    """Return the architecture with the most tensors in common with a state, and its report.

    wgeo's own architectures, torchvision's ResNets and its vision transformers are searched. Return
    None if all of them differ too much.
    """
    ranking = _rank(state)
    return ranking[0] if ranking and ranking[0][1].matched_fraction >= _MIN_MATCHED else None


def _rank(state: State) -> list[tuple[str, KeyReport]]:
    """Return the architectures whose required key occurs in a state, the best match first."""
    reports = []
    depth = 6 * count_children(state, "layer1") + 2  # a CIFAR ResNet of any depth
    unusual = [f"cifar_resnet{depth}"] if 8 <= depth <= 2000 else []
    cache: dict[tuple[tuple[str, str], ...], dict[str, torch.Tensor]] = {}
    for name in dict.fromkeys([*ARCHS, *unusual, *(f"torchvision:{vit}" for vit in VITS)]):
        arch = find(name)
        if arch.rename not in cache:  # ten of torchvision's architectures have the same patterns
            names = _new_names(arch, state)
            cache[arch.rename] = {names[key]: tensor for key, tensor in state.items()}
        renamed = cache[arch.rename]
        if not any(re.search(arch.required_key, key) for key in renamed):
            continue
        try:
            settings = _settings(arch, renamed, None, {})
            reports.append((name, _compare(arch, settings, renamed)[0]))
        except ArgumentError:  # the architecture cannot be built with these shapes
            continue
    return sorted(reports, key=lambda pair: -pair[1].matched_fraction)


def _settings(
    arch: Arch, state: State, num_classes: int | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    settings = arch.infer(state, options)
    if num_classes is not None:
        settings["num_classes"] = num_classes
    if arch.user_code:
        return {**settings, **options}
    passed_on = settings.keys() & {"heads", *TIMM_SIZES}
    unknown = sorted(set(options) - {"activation"} - passed_on)
    if unknown:
        raise ArgumentError(
            f"{', '.join(unknown)} is determined by the checkpoint's shapes, or unknown. Only the "
            "activation, the heads of a vit and the image size of a timm network can be passed."
        )
    if "activation" in options:
        settings["activation"] = options["activation"]
    try:
        hash(tuple(settings.items()))  # as `_shapes` needs
    except TypeError as error:
        raise ArgumentError(f"{arch.name} cannot be built with {settings}: {error}") from error
    return settings


def _compare(
    arch: Arch, settings: dict[str, Any], state: State
) -> tuple[KeyReport, nn.Module | None, dict[str, str]]:
    """Compare a state with the network that the settings describe.

    The network is built on the meta device, so that no file can exhaust memory. Users' factories
    may not support this, and torchvision's RegNets do not, since they compute their widths with
    tensors. Such a network is built in memory and is the second result. If the file has other names
    for the head's tensors, the third result maps them to the network's.
    """
    if not arch.user_code:
        if arch.imports:
            importlib.import_module(arch.imports)
        try:
            with shapes_only():
                shapes = _with_fixed_head(_shapes(arch.name, tuple(settings.items())), state)
            report, heads = _match(shapes, state)
            return report, None, heads
        except NotImplementedError:  # "Cannot copy out of meta tensor; no data!"
            pass
        except (RuntimeError, ValueError, OverflowError) as error:
            raise ArgumentError(f"{arch.name} cannot be built with {settings}: {error}") from error
    module = _with_fixed_head(arch.build(**settings), state)
    report, heads = _match(module, state)
    return report, module, heads


def _match(net: nn.Module, state: State) -> tuple[KeyReport, dict[str, str]]:
    """Compare a network with a state whose head may be missing, or have another name of `HEADS`."""
    net_state, named_head = net.state_dict(), head_of(net)
    if named_head is None:
        return compare_keys(net_state, state), {}
    head = named_head[0]
    head_names: dict[str, str] = {}
    if f"{head}.weight" not in state:
        others = [name for name in HEADS if f"{name}.weight" in state.keys() - net_state.keys()]
        others = [name for name in others if state[f"{name}.weight"].ndim == 2]
        if len(others) == 1:
            head_names = {f"{others[0]}.{part}": f"{head}.{part}" for part in ("weight", "bias")}
    report = compare_keys(net_state, {head_names.get(key, key): t for key, t in state.items()})
    # If the head's weight is missing, other tensors with the head's name belong to a projector.
    only_projector = all(
        key.startswith(f"{head}.") or _PROJECTOR.match(key) for key in report.unexpected
    )
    parts = {f"{head}.weight", f"{head}.bias"}
    headless = f"{head}.weight" in report.missing and parts >= set(report.missing)
    if headless and only_projector and not report.misshapen:
        ignored = report.ignored + report.unexpected
        return replace(report, missing=(), unexpected=(), ignored=ignored, no_head=head), {}
    return report, head_names


# A search, the fit that follows, and other checkpoints of the same network use the same shapes.
@lru_cache(maxsize=32)
def _shapes(name: str, settings: tuple[tuple[str, Any], ...]) -> nn.Module:
    return find(name).build(**dict(settings))


def _with_fixed_head(net: nn.Module, state: State) -> nn.Module:
    """Give a network a fixed simplex-ETF head if the state's head has no bias."""
    named_head = head_of(net)
    if named_head is None:
        return net
    name, head = named_head
    weight = state.get(f"{name}.weight")
    if head.bias is None or f"{name}.bias" in state or weight is None or weight.ndim != 2:
        return net
    narrow = weight.shape[0] == weight.shape[1] != head.in_features
    try:
        return with_etf_classifier(net, "K" if narrow else "keep")
    except ArgumentError:
        return net


def _new_names(arch: Arch, state: State) -> dict[str, str]:
    """Map a file's names to the architecture's; unchanged if two names would coincide."""
    names = {}
    other_head = _other_head(state) if arch.rename else ""
    for key in state:
        name = re.sub(rf"^{other_head}\.", "fc.", key) if other_head else key
        for pattern, replacement in arch.rename:
            name = re.sub(pattern, replacement, name)
        names[key] = name
    if arch.rename:
        names |= _sequential_head_names(names, state)
    return names if len(set(names.values())) == len(names) else {key: key for key in state}


def _other_head(state: State) -> str:
    """Return the unusual name of a head; empty if it is not certain.

    The head is the only linear layer outside the backbone whose name suggests a classifier. Its
    shape alone would not distinguish it from a projector used in training.
    """
    linear = [key.removesuffix(".weight") for key, t in state.items() if t.ndim == 2]
    short = [name for name in linear if len(name) <= _MAX_HEAD_NAME]
    beside = [name for name in short if _HEAD_WORDS.fullmatch(name)]
    usual = any(re.match(rf"{ANY_HEAD}\.", key) for key in state)
    return beside[0] if len(beside) == 1 and not usual else ""


def _sequential_head_names(names: Mapping[str, str], state: State) -> dict[str, str]:
    """Return new names for a head that is the only layer with weights in an ``nn.Sequential``."""
    matches = {key: _SEQUENTIAL_HEAD.fullmatch(name) for key, name in names.items()}
    parts = {key: match for key, match in matches.items() if match}
    one_layer = len({match[2] for match in parts.values()}) == 1
    linear = any(state[key].ndim == 2 for key in parts)
    return (
        {key: match[1] + match[3] for key, match in parts.items()} if one_layer and linear else {}
    )


def _misfit_message(
    arch: Arch,
    settings: dict[str, Any],
    report: KeyReport,
    state: State,
    num_classes: int | None,
) -> str:
    message = f"The checkpoint does not fit {arch.name}: {report.describe()}."
    inferred = arch.infer(state, {})["num_classes"]
    if num_classes is not None and num_classes != inferred:
        message += f" Its head has {inferred} classes, but num_classes is {num_classes}."
    best = closest(state)
    if best is None:
        return message + " None of the built-in architectures is close; see `wgeo list archs`."
    name, best_report = best
    if name == arch.name:
        return message + " No other built-in architecture is closer."
    if best_report.fits:
        return message + f" It fits {name}: use `arch={name!r}`."
    common = percent(best_report.matched_fraction, 0)
    return message + f" The closest is {name}, with {common} of the tensors in common."

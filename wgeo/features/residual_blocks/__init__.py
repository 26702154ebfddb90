"""Find the residual blocks of a network by what they compute, not by their names.

A residual block computes s(x) + F(x), with a shortcut s and a branch F. The branch is silenced by
setting every weight outside the shortcut to zero. A module that then computes s(x), up to a scaling
and a final activation, is a residual block. This test also recognizes pre-activation blocks and
transformers. Sums in the forward of other modules are found by tracing the data flow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from ...arrays.checks import OF_NETWORK, check_finite
from ...errors import FeatureError
from ...models.parts import Block as OwnBlock
from ...models.parts import evaluating
from ...text import first_names
from .activations import Activations
from .forward import forward_sums
from .probing import (
    Call,
    Probe,
    copied,
    probe_network,
    returned,
    run,
)
from .residual import Residual, as_residual, has_weights
from .spec import BlockSpec
from .sums import SumTap, follow_running

__all__ = [
    "Activations",
    "BlockSpec",
    "Blocks",
    "SumTap",
    "copied",
    "find_blocks",
    "follow_running",
    "returned",
    "run",
    "survey",
]

_MAX_NAMES = 12  # layers listed in an error


@dataclass(frozen=True)
class Blocks:
    """The blocks of a network, and its other sums.

    Attributes
    ----------
    specs : tuple of BlockSpec
        In execution order.
    other_sums : dict of str to int
        Number of sums outside the blocks, of two tensors of equal shape, by the module whose
        forward computes them. They may be missed residual blocks. Empty if `layers` was given.
    """

    specs: tuple[BlockSpec, ...]
    other_sums: dict[str, int] = field(default_factory=dict)


def find_blocks(
    module: nn.Module, images: torch.Tensor, layers: Sequence[str] | None = None
) -> tuple[BlockSpec, ...]:
    """Return the blocks of a network in execution order; see `survey`."""
    return survey(module, images, layers).specs


def survey(module: nn.Module, images: torch.Tensor, layers: Sequence[str] | None = None) -> Blocks:
    """Return the blocks of a network in execution order, and its sums outside them.

    Parameters
    ----------
    module : nn.Module
    images : Tensor, (n, ...)
        A few inputs of the network, at least two of them different.
    layers : sequence of str, optional
        Names of modules to use as blocks instead of detected ones, or names returned by `survey`.

    Raises
    ------
    FeatureError
        No block was found, the network updates two streams of features alternately, a named module
        does not exist or did not run, or `layers` is empty, a string, or names a module twice.
    """
    modules = dict(module.named_modules())
    if layers is not None and (isinstance(layers, str) or not layers):
        raise FeatureError("layers must be a non-empty list of module names.")
    others: dict[str, int] = {}
    with evaluating(module), torch.no_grad():
        probe = probe_network(module, images)
        if layers is not None and all(name in modules for name in layers):
            ordered = _select(layers, modules, probe, [])
        else:
            residual = _search(modules, probe)
            if not residual:
                _require_finite(probe)
            names = {spec.module for _, spec in residual}
            sums, others, crossed = forward_sums(modules, probe, names)
            if crossed and layers is None:
                raise FeatureError(_two_streams(crossed))
            ordered = residual + sums
            if layers is not None:
                ordered, others = _select(layers, modules, probe, ordered), {}
    ordered.sort(key=lambda item: item[0])
    if not ordered:
        raise FeatureError(_no_blocks(module, probe, others))
    return Blocks(tuple(spec for _, spec in ordered), others)


_Ordered = list[tuple[int, BlockSpec]]  # each with the time at which its call or its sum ended


def _search(modules: dict[str, nn.Module], probe: Probe) -> _Ordered:
    """Return the innermost residual modules, and wgeo's own plain blocks."""
    blocks: _Ordered = []
    for name in sorted(modules, key=lambda n: -n.count(".")):  # children before their parents
        part, call = modules[name], probe.get(name)
        has_blocks = any(spec.module.startswith(name + ".") for _, spec in blocks)
        if not name or has_blocks or call is None:
            continue
        if not isinstance(part, OwnBlock) and not (any(part.children()) and has_weights(part)):
            continue
        specs = _blocks_of(name, part, call, probe)
        if specs[0][1].residual or (isinstance(part, OwnBlock) and call.count == 1):
            blocks += specs
    return blocks


def _select(
    layers: Sequence[str], modules: dict[str, nn.Module], probe: Probe, blocks: _Ordered
) -> _Ordered:
    by_name = {spec.name: (order, spec) for order, spec in blocks}
    if len(set(layers)) != len(layers):
        raise FeatureError("A layer is named twice.")
    selected: _Ordered = []
    for name in layers:
        if name in by_name:
            selected.append(by_name[name])
            continue
        if name not in modules or not name:
            others = (other for other in modules if other and other not in by_name)
            listing = first_names([*by_name, *others], _MAX_NAMES)
            raise FeatureError(f"No module {name!r} in this network; it has {listing}.")
        call = probe.get(name)
        if call is None:
            raise FeatureError(
                f"Module {name!r} did not run, or does not map a tensor to a tensor. "
                f"Choose others, such as {first_names(_followable(modules, probe), _MAX_NAMES)}."
            )
        selected += _blocks_of(name, modules[name], call, probe)
    return selected


def _blocks_of(name: str, part: nn.Module, call: Call, probe: Probe) -> _Ordered:
    """Return one block per call of a module."""
    residual = as_residual(name, part, call, probe)
    is_residual, fields = residual is not None, vars(residual or Residual())
    names = [name] if call.count == 1 else [f"{name}[{k}]" for k in range(call.count)]
    return [
        (order, BlockSpec(names[k], is_residual, module=name, call=k, **fields))
        for k, order in enumerate(call.orders)
    ]


def _require_finite(probe: Probe) -> None:
    """Raise an error if a module's output is not finite: then no module passes the test."""
    for name, call in sorted(probe.calls.items(), key=lambda item: item[1].orders[0]):
        if call.y is not None:
            check_finite(call.y, f"the output of {name!r}", advice=OF_NETWORK)


def _no_blocks(module: nn.Module, probe: Probe, others: dict[str, int]) -> str:
    modules = dict(module.named_modules())
    children = ", ".join(name for name, _ in module.named_children()) or "none"
    texts = first_names([_module_text(name) for name in others], _MAX_NAMES)
    added = (
        f" Tensors of equal shapes are added in the forward of {texts}, but no summand is computed "
        "from the other by separate modules."
        if others
        else ""
    )
    names = _followable(modules, probe)
    suggestion = f", such as `layers={names[:_MAX_NAMES]}`" if names else ""
    return (
        f"No residual block found in {type(module).__name__} (its children: {children}).{added} "
        f"Choose the modules to analyze: `layers=['name', ...]`{suggestion}."
    )


def _two_streams(crossed: Sequence[str]) -> str:
    texts = first_names([_module_text(name) for name in crossed], _MAX_NAMES)
    return (
        f"The forward of {texts} updates two streams of features alternately, each from the other, "
        "as in RevNet. Neither stream is a map from layer to layer. Let each block take and return "
        "both streams as one tensor, concatenated along the channels, or choose the modules to "
        "analyze: `layers=['name', ...]`."
    )


def _module_text(name: str) -> str:
    return name or "the network itself"


def _followable(modules: dict[str, nn.Module], probe: Probe) -> list[str]:
    """Return the parts of the network that could be layers, in execution order."""
    names: list[str] = []

    def add(prefix: str, part: nn.Module) -> None:
        for key, child in part.named_children():
            name = f"{prefix}.{key}" if prefix else key
            if type(child) in (nn.Sequential, nn.ModuleList, nn.ModuleDict):
                add(name, child)
            elif probe.get(name) is not None and has_weights(child):
                names.append(name)

    add("", modules[""])
    return sorted(names, key=lambda name: probe.calls[name].orders[0])

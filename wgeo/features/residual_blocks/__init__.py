"""Find the residual blocks of a network by what they do, not by what they are called.

With its branch silenced (every weight outside the shortcut set to zero), a residual block becomes
its shortcut: x + F(x) turns into s(x), up to a scaling and a final activation. A module that passes
this test is a residual block, whoever wrote it: torchvision's, timm's, pre-activation variants,
transformers. Sums that a network adds up in its own forward are found by watching them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from ...arrays.checks import check_finite
from ...errors import FeatureError
from ...models.parts import Block as OwnBlock
from .forward import forward_sums
from .probing import Call, Probe, evaluating, first_tensor, hooked, probed, returned, run
from .residual import as_residual, final_activation, weighs
from .spec import BlockSpec
from .sums import SumTap, follow_running

__all__ = [
    "BlockSpec",
    "Blocks",
    "SumTap",
    "evaluating",
    "find_blocks",
    "first_tensor",
    "follow_running",
    "hooked",
    "returned",
    "run",
    "survey",
]

_SUGGESTED = 12  # names of layers in an error


@dataclass(frozen=True)
class Blocks:
    """What was found in a network.

    Attributes
    ----------
    specs : tuple of BlockSpec
        In execution order.
    other_sums : dict of str to int
        Sums of equal shapes outside the blocks, by the module whose forward holds them: residual
        blocks of a kind that cannot be followed, or no blocks at all. Empty if layers were named.
    """

    specs: tuple[BlockSpec, ...]
    other_sums: dict[str, int] = field(default_factory=dict)


def find_blocks(
    module: nn.Module, images: torch.Tensor, layers: Sequence[str] | None = None
) -> tuple[BlockSpec, ...]:
    """Return the blocks of a network in execution order; see `survey`."""
    return survey(module, images, layers).specs


def survey(module: nn.Module, images: torch.Tensor, layers: Sequence[str] | None = None) -> Blocks:
    """Return the blocks of a network in execution order, and what else it adds up.

    Parameters
    ----------
    module : nn.Module
        Left exactly as it was: mode, weights and hooks.
    images : Tensor, (n, ...)
        A few images, as the network takes them; at least two that differ.
    layers : sequence of str, optional
        Names to take as blocks, instead of finding them: of modules, or as `survey` gives them.

    Raises
    ------
    FeatureError
        No block was found, or a named module does not exist or did not run; or no block could be
        found, since the network computes NaN.
    """
    modules = dict(module.named_modules())
    if layers is not None and (isinstance(layers, str) or not layers):
        raise FeatureError("layers must be a non-empty list of module names.")
    others: dict[str, int] = {}
    with evaluating(module), torch.no_grad():
        probe = probed(module, images)
        if layers is not None and all(name in modules for name in layers):
            placed = _named(layers, modules, probe, [])
        else:
            found = _search(modules, probe)
            if not found:
                _require_finite(probe)
            names = {spec.module for _, spec in found}
            sums, others = forward_sums(modules, probe, names)
            placed = found + sums
            if layers is not None:
                placed, others = _named(layers, modules, probe, placed), {}
    placed.sort(key=lambda item: item[0])
    if not placed:
        raise FeatureError(_nothing(module, probe, others))
    return Blocks(tuple(spec for _, spec in placed), others)


_Placed = list[tuple[int, BlockSpec]]  # with the time at which each ends


def _search(modules: dict[str, nn.Module], probe: Probe) -> _Placed:
    """Innermost modules that are residual, and our own plain blocks."""
    found: _Placed = []
    for name in sorted(modules, key=lambda n: -n.count(".")):  # children before their parents
        part, call = modules[name], probe.get(name)
        inside = any(spec.module.startswith(name + ".") for _, spec in found)
        if not name or inside or call is None or call.y is None or call.x is None:
            continue
        if not isinstance(part, OwnBlock) and not (any(part.children()) and weighs(part)):
            continue
        specs = _classified(name, part, call, probe)
        if specs[0][1].residual or (isinstance(part, OwnBlock) and call.count == 1):
            found += specs
    return found


def _named(
    layers: Sequence[str], modules: dict[str, nn.Module], probe: Probe, found: _Placed
) -> _Placed:
    known = {spec.name: (order, spec) for order, spec in found}
    if len(set(layers)) != len(layers):
        raise FeatureError("A layer is named twice.")
    placed: _Placed = []
    for name in layers:
        if name in known:
            placed.append(known[name])
            continue
        if name not in modules or not name:
            shown = _some([*known, *(other for other in modules if other and other not in known)])
            raise FeatureError(f"No module {name!r} in this network; it has {shown}.")
        call = probe.get(name)
        if call is None or call.x is None or call.y is None:
            raise FeatureError(
                f"Module {name!r} did not run, or does not map a tensor to a tensor. "
                f"Name others, such as {_some(_followable(modules, probe))}."
            )
        placed += _classified(name, modules[name], call, probe)
    return placed


def _classified(name: str, part: nn.Module, call: Call, probe: Probe) -> _Placed:
    """A module as blocks: one for each of its calls."""
    residual = as_residual(name, part, call, probe)
    activation = final_activation(name, part, probe)
    return [
        (
            order,
            BlockSpec(
                name if call.count == 1 else f"{name}[{k}]",
                residual is not None,
                residual.shortcut if residual else None,
                activation,
                argument=residual.argument if residual else 0,
                module=name,
                call=k,
            ),
        )
        for k, order in enumerate(call.orders)
    ]


def _require_finite(probe: Probe) -> None:
    """Refuse a network that computes NaN: no module can be judged by what it does then."""
    for name, call in sorted(probe.calls.items(), key=lambda item: item[1].orders[0]):
        if call.y is not None:
            check_finite(call.y, f"what {name!r} returns")


def _nothing(module: nn.Module, probe: Probe, others: dict[str, int]) -> str:
    """Say that there is no block, and which layers can be named instead."""
    modules = dict(module.named_modules())
    children = ", ".join(name for name, _ in module.named_children()) or "none"
    added = (
        f" Tensors of equal shapes are added in the forward of {_some(map(_called, others))}, but "
        "no summand is computed from the other by modules of its own."
        if others
        else ""
    )
    names = _followable(modules, probe)
    offered = f", such as `layers={names[:_SUGGESTED]}`" if names else ""
    return (
        f"No residual block found in {type(module).__name__} (its children: {children}).{added} "
        f"Name the modules to analyse: `layers=['name', ...]`{offered}."
    )


def _called(name: str) -> str:
    return name or "the network itself"


def _some(names: Sequence[str] | map[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SUGGESTED]) + (", ..." if len(names) > _SUGGESTED else "")


def _followable(modules: dict[str, nn.Module], probe: Probe) -> list[str]:
    """Modules to name as layers: the parts of the network's lists and sequences, in order."""
    names: list[str] = []

    def add(prefix: str, part: nn.Module) -> None:
        for key, child in part.named_children():
            name = f"{prefix}.{key}" if prefix else key
            call = probe.get(name)
            if type(child) in (nn.Sequential, nn.ModuleList, nn.ModuleDict):
                add(name, child)
            elif call is not None and call.x is not None and call.y is not None and weighs(child):
                names.append(name)

    add("", modules[""])
    return sorted(names, key=lambda name: probe.calls[name].orders[0])

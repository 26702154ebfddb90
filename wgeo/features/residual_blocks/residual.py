"""Test whether a module is a residual block: with its branch silenced, it equals its shortcut.

A `BlockSpec` is the result for a module, or for a sum in a network's forward.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .functions import Address, Node
from .probing import Call, Probe, copied, returned

_TOLERANCE = 1e-5  # relative to the largest entry: rounding of one block in float32
_ACTIVATIONS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    functional.gelu,
    lambda t: functional.gelu(t, approximate="tanh"),
    functional.silu,
    functional.elu,
    functional.mish,
    functional.hardswish,
    functional.relu6,
    torch.tanh,
    torch.sigmoid,
)


@dataclass(frozen=True)
class BlockSpec:
    """A block of a network: a module, one of several calls of a module, or a sum in a forward."""

    # The module's name; ``block[1]`` for the second call of a module that runs several times;
    # ``res1+x`` for the sum of x and the output of the module ``res1`` for x.
    name: str
    residual: bool  # whether the block adds a shortcut to its branch
    shortcut: str | None  # name of the module that is the shortcut; None for the identity
    # Whether an activation after the sum was noticed. With a silenced branch, the sum is the
    # shortcut's value for the images of the probe. A ReLU that does not change this value, because
    # no entry is negative, is not noticed.
    activated: bool = False
    # For a module, the position or keyword of the argument that its identity shortcut returns. For
    # a sum, the index of the identity summand.
    argument: int | str = 0
    module: str = ""  # name of the module that is the block; empty for a sum
    call: int = 0  # index of the module's call
    sum: Address | None = None  # None for a module
    tail: tuple[str, ...] = ()  # functions directly after the sum: a scaling, an activation
    scale: float = 1.0  # factor c of a block c (x + F(x))


def block_spec(name: str, part: nn.Module, call: Call, probe: Probe) -> BlockSpec:
    """Return a module's specification, which says whether it is a residual block.

    A module that cannot be copied, or fails when its weights are zero, counts as not residual.
    """
    spec = None
    if any(part.children()):
        spec = _identity(name, part, call, probe) or _by_child(name, part, call, probe)
    return spec or BlockSpec(name, False, None, module=name)


def _adds(name: str, nodes: Set[Node | None], probe: Probe) -> bool:
    """Return whether a sum inside a module adds one of these tensors, or a multiple of it."""
    return any(
        name in total.running and not nodes.isdisjoint(probe.watch.multiples(node))
        for total in probe.watch.sums
        for node in total.nodes
    )


def _identity(name: str, part: nn.Module, call: Call, probe: Probe) -> BlockSpec | None:
    """Return the block if its shortcut is the identity of an argument, else None."""
    assert call.y is not None
    arguments: list[tuple[int | str, Any]] = [*enumerate(call.args), *call.kwargs.items()]
    tensors = [
        (key, value)
        for key, value in arguments
        if isinstance(value, torch.Tensor) and value.shape == call.y.shape
    ]
    if not tensors:
        return None
    adds = _adds(name, {run.x for run in probe.watch.calls if run.name == name}, probe)
    out = _run_silenced(part, call)
    for key, value in tensors:
        end = _end_of(out, value, part, scaled=adds)
        if end is not None:
            scale, activated = end
            return BlockSpec(name, True, None, activated, key, module=name, scale=scale)
    return None


def _by_child(name: str, part: nn.Module, call: Call, probe: Probe) -> BlockSpec | None:
    """Return the block if its shortcut is one of its children, else None.

    Several children can pass the test. For example, if the shortcut is silenced instead of the
    branch, the block equals the last child of the branch. A child that reads the block's own input
    is preferred. If several or none do, the child with the fewest activations is chosen, and among
    those, the one with the fewest parameters.
    """
    x, y = call.x, call.y
    assert x is not None
    assert y is not None
    candidates = []
    for child_name, child in part.named_children():
        shortcut = f"{name}.{child_name}"
        inner = probe.get(shortcut)
        if inner is None or inner.count != call.count:
            continue
        assert inner.x is not None
        assert inner.y is not None
        if inner.y.shape != y.shape:
            continue
        outputs = {run.y for run in probe.watch.calls if run.name == shortcut}
        if not _adds(name, outputs, probe):
            continue  # not a summand: for example, the last projection of attention
        reads_input = inner.x.shape == x.shape and bool(torch.equal(inner.x, x))
        kept_children = {child_name}
        if not reads_input:  # then keep the children before it, such as a pre-activation
            kept_children |= {
                other
                for other, _ in part.named_children()
                if (c := probe.calls.get(f"{name}.{other}")) and c.orders[0] < inner.orders[0]
            }
        if not has_weights(part, kept_children):
            continue
        end = _end_of(_run_silenced(part, call, kept_children), inner.y, part)
        if end is not None:
            weight = sum(p.numel() for p in child.parameters())
            activations = sum(_is_activation(m) for m in child.modules())
            rank = (not reads_input, activations, weight, child_name)
            candidates.append((rank, BlockSpec(name, True, shortcut, end[1], module=name)))
    return min(candidates, key=lambda item: item[0])[1] if candidates else None


def has_weights(part: nn.Module, kept_children: Set[str] = frozenset()) -> bool:
    """Return whether a module has matrices or kernels outside the children in `kept_children`."""
    return any(
        p.ndim > 1 for key, p in part.named_parameters() if key.split(".")[0] not in kept_children
    )


def _run_silenced(
    part: nn.Module, call: Call, kept_children: Set[str] = frozenset()
) -> torch.Tensor | None:
    """Run a copy whose weights outside `kept_children` are 0; return None if it fails."""
    try:
        clone = copy.deepcopy(part)
        for key, value in [*clone.named_parameters(), *clone.named_buffers()]:
            if key.split(".")[0] in kept_children or key.endswith("running_var"):
                continue
            if value.is_floating_point():
                value.zero_()
        return returned(clone(*copied(call.args), **copied(call.kwargs)))
    except Exception:  # third-party code with other weights can raise anything
        return None


def _end_of(
    out: torch.Tensor | None, target: torch.Tensor, part: nn.Module, *, scaled: bool = False
) -> tuple[float, bool] | None:
    """Compare the output of a silenced block with `target`, the shortcut's value.

    Return (c, activated) if the output is c times `target` or an activation of `target`; otherwise
    None. Unless `scaled`, only c = 1 is accepted: a silenced gate x * sigmoid(f(x)) computes x / 2,
    but adds nothing.
    """
    if out is None or out.shape != target.shape or not out.is_floating_point():
        return None
    variation = (target - target[:1]).abs().max()
    if not bool(variation > 0):  # a constant, which any silenced module may return
        return None
    scale, image = _two_slopes(out, target, scaled)
    if _same(out, image):
        scale = 1.0 if abs(scale - 1) <= _TOLERANCE else scale
        return scale, not _same(out, scale * target)
    activations = [m for m in part.modules() if _is_activation(m)]
    functions: list[Callable[[torch.Tensor], torch.Tensor]] = [*_ACTIVATIONS, *activations]
    activated = any(_same(out, function(target.clone())) for function in functions)
    return (1.0, True) if activated else None


def _two_slopes(
    out: torch.Tensor, target: torch.Tensor, scaled: bool
) -> tuple[float, torch.Tensor]:
    """Fit a max(t, 0) + b min(t, 0) to `out`, where t is `target`; return a and the fit.

    The fit is exact if `out` is a scaling or a (leaky) ReLU of t. Unless `scaled`, a is 1. If the
    fit would flip signs, or a is near 0, return 1 and NaN.
    """
    up, down = target.clamp_min(0).double(), target.clamp_max(0).double()
    rise, fall = ((out * part).sum() / part.square().sum().clamp_min(1e-30) for part in (up, down))
    if not scaled:
        rise = torch.ones_like(rise)
    if not (rise > 0.01 and fall >= -0.01):  # an activation does not flip signs
        return 1.0, torch.full_like(out, torch.nan)
    return float(rise), (rise * up + fall * down).to(out.dtype)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    scale = float(torch.maximum(a.abs().max(), b.abs().max()))
    return a.shape == b.shape and bool(((a - b).abs() <= _TOLERANCE * scale).all())


def _is_activation(module: nn.Module) -> bool:
    """Return whether a module is one of torch's activations without parameters."""
    return type(module).__module__.endswith("modules.activation") and not any(
        True for _ in module.parameters()
    )

"""Test whether a module is a residual block: with its branch silenced, it equals its shortcut."""

from __future__ import annotations

import copy
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .probing import Call, Probe, copied, returned
from .sums import Node

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
class Residual:
    """The shortcut of a residual block; for the attributes, see `BlockSpec`."""

    shortcut: str | None = None
    argument: int | str = 0
    scale: float = 1.0
    activated: bool = False


def as_residual(name: str, part: nn.Module, call: Call, probe: Probe) -> Residual | None:
    """Return the shortcut of a residual block; None if a module is not detected as one.

    A module that cannot be copied, or fails when its weights are zero, is not detected.
    """
    if not any(part.children()):
        return None
    return _identity(name, part, call, probe) or _by_child(name, part, call, probe)


def _adds(name: str, nodes: Set[Node | None], probe: Probe) -> bool:
    """Return whether a sum inside a module has one of these tensors, or a multiple, as summand."""
    return any(
        name in total.running and not nodes.isdisjoint(probe.watch.multiples(node))
        for total in probe.watch.sums
        for node in total.nodes
    )


def _identity(name: str, part: nn.Module, call: Call, probe: Probe) -> Residual | None:
    assert call.y is not None
    arguments: list[tuple[int | str, Any]] = [*enumerate(call.args)]
    arguments += call.kwargs.items()
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
            return Residual(None, key, *end)
    return None


def _by_child(name: str, part: nn.Module, call: Call, probe: Probe) -> Residual | None:
    """Find the child that is the shortcut; None if no child passes the test.

    The child at the end of the branch passes too, because a block with a silenced shortcut equals
    its branch. The shortcut is therefore preferably a child that reads the block's own input; among
    equals, the one with the fewest activations, then the fewest parameters.
    """
    x, y = call.x, call.y
    assert x is not None
    assert y is not None
    candidates = []
    for child_name, child in part.named_children():
        inner = probe.get(f"{name}.{child_name}")
        if inner is None or inner.count != call.count:
            continue
        assert inner.x is not None
        assert inner.y is not None
        if inner.y.shape != y.shape:
            continue
        outputs = {run.y for run in probe.watch.calls if run.name == f"{name}.{child_name}"}
        if not _adds(name, outputs, probe):
            continue  # not a summand, such as the last projection in an attention
        reads_input = inner.x.shape == x.shape and bool(torch.equal(inner.x, x))
        kept_children = {child_name}
        if not reads_input:  # the shortcut follows the block's pre-activation: keep its inputs
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
            candidates.append((rank, Residual(f"{name}.{child_name}", activated=end[1])))
    return min(candidates, key=lambda item: item[0])[1] if candidates else None


def has_weights(part: nn.Module, kept_children: Set[str] = frozenset()) -> bool:
    """Return whether a module has matrices or kernels outside the children in `kept_children`."""
    return any(
        p.ndim > 1 for key, p in part.named_parameters() if key.split(".")[0] not in kept_children
    )


def _run_silenced(
    part: nn.Module, call: Call, kept_children: Set[str] = frozenset()
) -> torch.Tensor | None:
    """Run a copy with zero weights and buffers, except in `kept_children`; None if it fails."""
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

    Return (c, activated) if the output is c `target`, or an activation of it; otherwise None.
    Unless `scaled`, c is 1: a silenced gate x * sigmoid(f(x)) is a multiple, x / 2, without a sum.
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
    """Fit a max(t, 0) + b min(t, 0), a scaling or (leaky) ReLU of the target t, to `out`.

    Return a, which is 1 unless `scaled`, and the fit, which is all NaN if it flips signs.
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

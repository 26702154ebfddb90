"""Is a module a residual block? With its branch silenced, it becomes its shortcut."""

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
_CURVES: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
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
    """What a residual block adds its branch to.

    Attributes
    ----------
    shortcut : str or None
        The child that is the shortcut; None for the identity.
    argument : int or str
        Which argument the identity is of: its position or keyword.
    """

    shortcut: str | None = None
    argument: int | str = 0


def as_residual(name: str, part: nn.Module, call: Call, probe: Probe) -> Residual | None:
    """Return what a module adds its branch to; None if it is no residual block, as far as we see.

    A module that cannot be copied, or does not run with other weights, cannot be judged, and counts
    as none.
    """
    if call.y is None or call.x is None or not any(part.children()):
        return None
    return _identity(name, part, call, probe) or _by_child(name, part, call, probe)


def _adds(name: str, nodes: Set[Node | None], probe: Probe) -> bool:
    """Whether one of the sums inside a module adds something to one of these tensors."""
    return any(
        name in total.path and not nodes.isdisjoint(probe.watch.multiples(node))
        for total in probe.watch.sums
        for node in total.nodes
    )


def _identity(name: str, part: nn.Module, call: Call, probe: Probe) -> Residual | None:
    assert call.y is not None
    named: list[tuple[int | str, Any]] = [*enumerate(call.args)]
    named += call.kwargs.items()
    given = [
        (key, value)
        for key, value in named
        if isinstance(value, torch.Tensor) and value.shape == call.y.shape
    ]
    if not given:
        return None
    adds = _adds(name, {run.x for run in probe.watch.ran if run.name == name}, probe)
    out = _run_silenced(part, call)
    for key, value in given:
        if _is_image(out, value, part, scaled=adds):
            return Residual(None, key)
    return None


def _by_child(name: str, part: nn.Module, call: Call, probe: Probe) -> Residual | None:
    """Find the child that is the shortcut.

    The branch, or its end, passes the test too when the shortcut is silenced: the shortcut is what
    sees the block's own input, and is the straighter and lighter of the two.
    """
    x, y = call.x, call.y
    assert x is not None
    assert y is not None
    candidates = []
    for child_name, child in part.named_children():
        inner = probe.get(f"{name}.{child_name}")
        if inner is None or inner.count != call.count or inner.x is None or inner.y is None:
            continue
        if inner.y.shape != y.shape:
            continue
        made = {run.y for run in probe.watch.ran if run.name == f"{name}.{child_name}"}
        if not _adds(name, made, probe):
            continue  # an attention and its last projection, say: what is silent decides nothing
        first_hand = inner.x.shape == x.shape and bool(torch.equal(inner.x, x))
        spared = {child_name}
        if not first_hand:  # a shortcut that shares the block's pre-activation: keep what feeds it
            spared |= {
                other
                for other, _ in part.named_children()
                if (c := probe.get(f"{name}.{other}")) is not None and c.orders[0] < inner.orders[0]
            }
        if weighs(part, spared) and _is_image(_run_silenced(part, call, spared), inner.y, part):
            weight = sum(p.numel() for p in child.parameters())
            bends = sum(is_activation(m) for m in child.modules())
            candidates.append((not first_hand, bends, weight, f"{name}.{child_name}"))
    return Residual(min(candidates)[-1]) if candidates else None


def weighs(part: nn.Module, spared: Set[str] = frozenset()) -> bool:
    """Whether a module holds matrices or kernels, outside the children in `spared`."""
    return any(p.ndim > 1 for key, p in part.named_parameters() if key.split(".")[0] not in spared)


def _run_silenced(
    part: nn.Module, call: Call, spared: Set[str] = frozenset()
) -> torch.Tensor | None:
    """Run a copy whose weights are zero, except for the children in `spared`; None if it fails."""
    try:
        twin = copy.deepcopy(part)
        for key, value in [*twin.named_parameters(), *twin.named_buffers()]:
            if key.split(".")[0] in spared or key.endswith("running_var"):
                continue
            if value.is_floating_point():
                value.zero_()
        return returned(twin(*copied(call.args), **copied(call.kwargs)))
    except Exception:  # somebody else's code, with other weights, can raise anything
        return None


def _is_image(
    out: torch.Tensor | None, target: torch.Tensor, part: nn.Module, *, scaled: bool = False
) -> bool:
    """Whether a silenced block returned `target`: as it is, or through an activation.

    Or `scaled`, which alone would not do: a silenced gate x * sigmoid(f(x)) is x / 2.
    """
    if out is None or out.shape != target.shape or not out.is_floating_point():
        return False
    spread = (target - target[:1]).abs().max()
    if not bool(spread > 0):  # a constant proves nothing: every silenced module returns one
        return False
    if _same(out, _two_slopes(out, target, scaled)):
        return True
    activations = [m for m in part.modules() if is_activation(m)]
    ends: list[Callable[[torch.Tensor], torch.Tensor]] = [*_CURVES, *activations]
    return any(_same(out, end(target.clone())) for end in ends)


def _two_slopes(out: torch.Tensor, target: torch.Tensor, scaled: bool) -> torch.Tensor:
    """Return the closest of all a max(t, 0) + b min(t, 0): scalings, ReLU and leaky ReLU."""
    up, down = target.clamp_min(0).double(), target.clamp_max(0).double()
    rise, fall = ((out * part).sum() / part.square().sum().clamp_min(1e-30) for part in (up, down))
    if not scaled:
        rise = torch.ones_like(rise)
    if not (rise > 0.01 and fall >= -0.01):  # what turns a sign around is no activation
        return torch.full_like(out, torch.nan)
    return (rise * up + fall * down).to(out.dtype)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    scale = float(torch.maximum(a.abs().max(), b.abs().max()))
    return a.shape == b.shape and bool(((a - b).abs() <= _TOLERANCE * scale).all())


def is_activation(module: nn.Module) -> bool:
    """Whether a module is one of torch's activations, without weights of its own."""
    return type(module).__module__.endswith("modules.activation") and not any(
        True for _ in module.parameters()
    )


def final_activation(name: str, part: nn.Module, probe: Probe) -> str | None:
    """Return the activation module whose output is the block's; None if nothing follows the sum."""
    whole = probe.calls[name].last
    for key, inner in part.named_modules():
        call = probe.get(f"{name}.{key}")
        if not key or not is_activation(inner) or call is None:
            continue
        if call.last is None or whole is None or call.last.shape != whole.shape:
            continue
        if torch.equal(call.last, whole):
            return f"{name}.{key}"
    return None

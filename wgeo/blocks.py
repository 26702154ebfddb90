"""Find the residual blocks of a network by what they do, not by what they are called.

With its branch silenced (every weight outside the shortcut set to zero), a residual block becomes
its shortcut: x + F(x) turns into s(x), up to a final activation. A module that passes this test is
a residual block, whoever wrote it: torchvision's, timm's, pre-activation variants, transformers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .arrays import check_finite
from .errors import FeatureError, WgeoError
from .models import Block as OwnBlock


@dataclass(frozen=True)
class BlockSpec:
    """Where a block sits in its network.

    Attributes
    ----------
    name : str
        The module's name.
    residual : bool
        Whether it adds a shortcut to what it computes.
    shortcut : str or None
        Name of the module that is its shortcut; None where that is the identity (or absent).
    activation : str or None
        Name of the activation module that ends the block; None where nothing follows the sum.
    """

    name: str
    residual: bool
    shortcut: str | None
    activation: str | None


@dataclass
class _Call:
    """One module's call in a probing pass."""

    order: int
    x: torch.Tensor | None
    y: torch.Tensor | None
    count: int = 1


_Probe = dict[str, _Call]  # what every module received and returned, by its name


def find_blocks(
    module: nn.Module, images: torch.Tensor, layers: Sequence[str] | None = None
) -> tuple[BlockSpec, ...]:
    """Return the blocks of a network in execution order.

    Parameters
    ----------
    module : nn.Module
        Left exactly as it was: mode, weights and hooks.
    images : Tensor, (n, ...)
        A few images, as the network takes them; at least two that differ.
    layers : sequence of str, optional
        Names of the modules to take as blocks, instead of finding them.

    Raises
    ------
    FeatureError
        No block was found, or a named module does not exist or did not run exactly once; or no
        block could be found, since the network computes NaN.
    """
    modules = dict(module.named_modules())
    if layers is not None:
        _check_names(layers, modules)
    with evaluating(module), torch.no_grad():
        probe = _probe(module, images)
        if layers is not None:
            specs = [_named(name, modules[name], probe) for name in layers]
        else:
            specs = _search(modules, probe)
    specs.sort(key=lambda spec: probe[spec.name].order)
    if not specs:
        for name, call in sorted(probe.items(), key=lambda item: item[1].order):
            if call.y is not None:
                check_finite(call.y, f"what {name!r} returns")
        children = ", ".join(name for name, _ in module.named_children()) or "none"
        raise FeatureError(
            f"No residual block found in {type(module).__name__} (its children: {children}). "
            "Name the modules to analyse: layers=['name', ...] (--layers name,name)."
        )
    return tuple(specs)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a network in eval mode, and every submodule back in its own mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def hooked() -> Iterator[Callable[[Any], None]]:
    """Collect hook handles; remove them all on the way out, exceptions included."""
    handles: list[Any] = []
    try:
        yield handles.append
    finally:
        for handle in handles:
            handle.remove()


def _check_names(layers: Sequence[str], modules: dict[str, nn.Module]) -> None:
    if isinstance(layers, str) or not layers:
        raise FeatureError("layers must be a non-empty list of module names.")
    for name in layers:
        if name not in modules or not name:
            known = [known for known in modules if known]
            shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
            raise FeatureError(f"No module {name!r} in this network; it has {shown}.")
    if len(set(layers)) != len(layers):
        raise FeatureError("A layer is named twice.")


def _probe(module: nn.Module, images: torch.Tensor) -> _Probe:
    """Pass a few images through and note every module's input and output."""
    probe: _Probe = {}
    inputs: dict[str, torch.Tensor | None] = {}

    def before(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            x = first_tensor(args)
            inputs[name] = None if x is None else x.clone()  # an in-place branch may overwrite it

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            y = out.clone() if isinstance(out, torch.Tensor) else None
            count = probe[name].count + 1 if name in probe else 1
            probe[name] = _Call(len(probe), inputs.get(name), y, count)

        return hook

    with hooked() as keep:
        for name, part in module.named_modules():
            if name:
                keep(part.register_forward_pre_hook(before(name)))
                keep(part.register_forward_hook(after(name)))
        run(module, images)
    return probe


def first_tensor(args: Sequence[Any]) -> torch.Tensor | None:
    """Return what a module takes as its input: the first tensor among its arguments."""
    return next((a for a in args if isinstance(a, torch.Tensor)), None)


def run(module: nn.Module, images: torch.Tensor) -> Any:
    """Call a network on images; say in words what it could not take."""
    try:
        return module(images)
    except WgeoError:  # said in words by a hook of ours
        raise
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FeatureError(
            f"{type(module).__name__} cannot take images of shape {tuple(images.shape[1:])}: "
            f"{reason}. Check the architecture's channels and image size against the data."
        ) from error


def _search(modules: dict[str, nn.Module], probe: _Probe) -> list[BlockSpec]:
    """Innermost modules that are residual, and our own plain blocks."""
    found: list[BlockSpec] = []
    for name in sorted(modules, key=lambda n: -n.count(".")):  # children before their parents
        inside = any(spec.name.startswith(name + ".") for spec in found)
        call = probe.get(name)
        if not name or inside or call is None or call.count != 1:
            continue
        if call.x is None or call.y is None:
            continue
        part = modules[name]
        if not isinstance(part, OwnBlock) and not (any(part.children()) and _weighs(part)):
            continue
        spec = _classify(name, part, probe)
        if spec.residual or isinstance(part, OwnBlock):
            found.append(spec)
    return found


def _named(name: str, part: nn.Module, probe: _Probe) -> BlockSpec:
    call = probe.get(name)
    if call is None or call.x is None or call.y is None:
        raise FeatureError(f"Module {name!r} did not run, or does not map a tensor to a tensor.")
    if call.count != 1:
        raise FeatureError(
            f"Module {name!r} ran {call.count} times in one pass; a layer must run once. "
            "Name the modules around it instead."
        )
    return _classify(name, part, probe)


def _classify(name: str, part: nn.Module, probe: _Probe) -> BlockSpec:
    call = probe[name]
    assert call.x is not None
    assert call.y is not None
    residual, shortcut = _shortcut(name, part, call, probe)
    activation = _final_activation(name, part, call.y, probe)
    return BlockSpec(name, residual, shortcut, activation)


def _shortcut(name: str, part: nn.Module, call: _Call, probe: _Probe) -> tuple[bool, str | None]:
    """Is it residual, and which child (None: the identity) is its shortcut?"""
    x, y = call.x, call.y
    assert x is not None
    assert y is not None
    if not any(part.children()):
        return False, None
    if x.shape == y.shape and _becomes(_silenced(part), x, x, part):
        return True, None
    candidates = []
    for child_name, child in part.named_children():
        inner = probe.get(f"{name}.{child_name}")
        if inner is None or inner.count != 1 or inner.y is None or inner.y.shape != y.shape:
            continue
        if inner.x is None:
            continue
        first_hand = inner.x.shape == x.shape and bool(torch.equal(inner.x, x))
        spared = {child_name}
        if not first_hand:  # a shortcut that shares the block's pre-activation: keep what feeds it
            spared |= {
                other
                for other, _ in part.named_children()
                if (c := probe.get(f"{name}.{other}")) is not None and c.order < inner.order
            }
        if _weighs(part, spared) and _becomes(_silenced(part, spared), x, inner.y, part):
            weight = sum(p.numel() for p in child.parameters())
            bends = sum(_is_activation(m) for m in child.modules())
            candidates.append((not first_hand, bends, weight, f"{name}.{child_name}"))
    # The branch, or its end, passes the test too, with the shortcut silenced: the shortcut is what
    # sees the block's own input, and is the straighter and lighter of the two.
    return (True, min(candidates)[-1]) if candidates else (False, None)


def _weighs(part: nn.Module, spared: Set[str] = frozenset()) -> bool:
    """Whether a module holds matrices or kernels, outside the children in `spared`."""
    return any(p.ndim > 1 for key, p in part.named_parameters() if key.split(".")[0] not in spared)


def _silenced(part: nn.Module, spared: Set[str] = frozenset()) -> nn.Module:
    """Return a copy whose weights are zero, but for the children in `spared`."""
    twin = copy.deepcopy(part)
    for key, value in [*twin.named_parameters(), *twin.named_buffers()]:
        if key.split(".")[0] in spared or key.endswith("running_var"):
            continue
        if value.is_floating_point():
            value.zero_()
    return twin


def _becomes(twin: nn.Module, x: torch.Tensor, target: torch.Tensor, part: nn.Module) -> bool:
    """Whether the silenced block returns `target`, as it is or through an activation."""
    spread = (target - target[:1]).abs().max()
    if not bool(spread > 0):  # a constant proves nothing: every silenced module returns one
        return False
    try:
        out = twin(x.clone())
    except (RuntimeError, ValueError, TypeError):
        return False
    if not isinstance(out, torch.Tensor) or out.shape != target.shape:
        return False
    activations = [m for m in part.modules() if _is_activation(m)]
    ends: list[Callable[[torch.Tensor], torch.Tensor]] = [lambda t: t, torch.relu, *activations]
    tolerance = 1e-5 * float(target.abs().max())
    return any(bool(((out - end(target.clone())).abs() <= tolerance).all()) for end in ends)


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__.endswith("modules.activation") and not any(
        True for _ in module.parameters()
    )


def _final_activation(name: str, part: nn.Module, y: torch.Tensor, probe: _Probe) -> str | None:
    for key, inner in part.named_modules():
        call = probe.get(f"{name}.{key}")
        if not key or not _is_activation(inner) or call is None or call.y is None:
            continue
        if call.y.shape == y.shape and torch.equal(call.y, y):
            return f"{name}.{key}"
    return None

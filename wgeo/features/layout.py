"""Detect the sample axis and the channel axis of feature maps by experiment.

Feature maps may have the axes (n, c, h, w) or (n, h, w, c). They may be tokens (n, t, c), (n, c, t)
or (t, n, c), or video. The sample axis may contain windows, several per image. Shapes do not
distinguish these cases, and a mean over the wrong axes is meaningless.

To find the samples, one image is changed: along the sample axis, only one sample changes.

To find the channels, the map is differentiated with respect to one entry of a bias, or one row of a
weight. The derivative is 0 except in one slice along the channel axis; along other axes, it is not
confined to a slice. Weights that mix tokens point to the token axis instead. The last conclusive
parameter before the map therefore decides. If none is conclusive, the channel axis is the only axis
that is as long as a parameter of one of the last modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ..arrays.checks import OF_NETWORK
from ..errors import FeatureError
from ..models.parts import evaluating, hooked
from ..results import Result
from ..runtime.memory import OUT_OF_MEMORY
from ..trajectory.trajectory import entry_key, features_key
from .residual_blocks import BlockSpec, run
from .taps import tensor_hooks

_MAX_IMAGES = 2  # number of images with which derivatives are computed
_MAX_DERIVATIVES = 16  # derivatives are tried for the parameters of this many last modules
_MAX_LENGTHS = 4  # lengths are tried for the parameters of this many last modules
_MIN_CONFINED = 0.95  # share of a derivative's squared norm in one slice; gates may spread the rest
_MIN_CHANGE = 1e-6  # smallest change above rounding, relative to the largest entry


_Modules = list[tuple[str, nn.Module]]  # with their names


@dataclass(frozen=True, repr=False)
class Layout(Result):
    """The sample axis and channel axis of a tensor.

    The sample axis may contain parts of samples, such as windows. Then `folded` is ``outer`` if the
    parts of one sample are consecutive, ``inner`` if the first parts of all samples are.
    """

    shape: tuple[int, ...]  # shape of one sample's map; the first axis is that of its parts, if any
    samples: int = 0  # axis of the tensor
    folded: str = ""
    channels: int | None = 1  # axis of a sample's map, counted from 1; None if unknown
    evidence: str = "one vector per sample"  # how the channel axis was found

    def samples_first(self, maps: torch.Tensor, n: int) -> torch.Tensor:
        """Return maps with their n samples on the first axis."""
        maps = maps.movedim(self.samples, 0)
        if self.folded == "outer":
            return maps.unflatten(0, (n, -1))
        if self.folded == "inner":
            return maps.unflatten(0, (-1, n)).transpose(0, 1)
        return maps

    def channels_first(self, maps: torch.Tensor, n: int) -> torch.Tensor:
        """Return maps as (n, c, ...)."""
        assert self.channels is not None
        return self.samples_first(maps, n).movedim(self.channels, 1)

    @property
    def space(self) -> tuple[int, ...]:
        """The shape of a sample's map with its channels first."""
        assert self.channels is not None
        axis = self.channels - 1
        return (self.shape[axis], *self.shape[:axis], *self.shape[axis + 1 :])


def find_layouts(
    module: nn.Module,
    specs: Sequence[BlockSpec],
    tap: str,
    images: torch.Tensor,
    channels: str | None = None,
) -> dict[str, Layout]:
    """Return the layout of every tensor that `tensor_hooks` records, by its key.

    At least two images are needed. If `channels` is ``first`` or ``last``, the channel axis is not
    searched for, but is the first or last axis after the samples.
    """
    n = len(images)
    with evaluating(module):
        with torch.no_grad():
            replaced = images.clone()
            replaced[1] = images[2 % n]
            maps, _ = _maps(module, specs, tap, images)
            others, _ = _maps(module, specs, tap, replaced)
        layouts = {key: _with_samples(maps[key], others[key], n, key) for key in maps}
        for key, tensor in maps.items():  # the input of the first block may be the images
            if layouts[key].channels is None and torch.equal(tensor, images):
                layouts[key] = replace(layouts[key], channels=1, evidence="the images themselves")
        if channels is not None:
            return {key: _with_given_axis(each, channels) for key, each in layouts.items()}
        unknown = [key for key, layout in layouts.items() if layout.channels is None]
        if not unknown:
            return layouts
        with _differentiable(module), torch.enable_grad():
            few = images[:_MAX_IMAGES]
            graphs, last_modules = _maps(module, specs, tap, few)
            for key in sorted(unknown, key=lambda key: key.startswith(entry_key(""))):
                block = layouts.get(key.replace(entry_key(""), features_key(""), 1))
                # A shortcut's output has the same layout as the sum to which it is added.
                if block is not None and block.channels and block.shape == layouts[key].shape:
                    layouts[key] = replace(
                        layouts[key], channels=block.channels, evidence=block.evidence
                    )
                elif key in graphs:
                    samples = layouts[key].samples_first(graphs[key], len(few))
                    layouts[key] = _with_channels(layouts[key], samples, last_modules[key])
    return layouts


def _maps(
    module: nn.Module, specs: Sequence[BlockSpec], tap: str, images: torch.Tensor
) -> tuple[dict[str, torch.Tensor], dict[str, _Modules]]:
    """Return the tensors of `tensor_hooks`, and the last modules with parameters before each."""
    maps: dict[str, torch.Tensor] = {}
    last_modules: dict[str, _Modules] = {}
    calls: _Modules = []

    def put(key: str, value: torch.Tensor) -> None:
        maps[key] = value.clone()
        last_modules[key] = list(dict.fromkeys(reversed(calls)))[:_MAX_DERIVATIVES]

    def end(name: str, part: nn.Module, *_: Any) -> None:
        calls.append((name, part))

    with hooked() as keep:
        for name, part in module.named_modules():
            if any(True for _ in part.parameters(recurse=False)):
                keep(part.register_forward_hook(partial(end, name)))
        with tensor_hooks(module, specs, tap, put):
            run(module, images.clone())
    return maps, last_modules


def _with_samples(maps: torch.Tensor, other: torch.Tensor, n: int, key: str) -> Layout:
    """Find the axis along which only one sample changes if the image at index 1 does."""
    changed = (maps - other).abs() > _MIN_CHANGE * maps.abs().max()
    for fold in ("", "outer", "inner"):
        for axis, size in enumerate(maps.shape):
            parts = size // n
            if size % n or (parts == 1) != (fold == ""):
                continue
            index = torch.arange(size, device=maps.device)
            in_sample = index // parts == 1 if fold != "inner" else index % n == 1
            slices = changed.movedim(axis, 0).flatten(1).any(1) if maps.ndim > 1 else changed
            if bool(slices.any()) and not bool(slices[~in_sample].any()):
                return _layout_of(maps, axis, fold, n)
    if maps.shape[0] == n:  # samples affect each other, or the layer is independent of the images
        return _layout_of(maps, 0, "", n)
    name = key.partition(":")[2]
    if not bool(torch.isfinite(maps).all()):
        raise FeatureError(f"The output of {name!r} contains NaN or infinity.{OF_NETWORK}")
    raise FeatureError(
        f"{name!r} returns a tensor of shape {tuple(maps.shape)} for {n} images, "
        "but no axis of this tensor is the sample axis. Choose other modules: `layers=`."
    )


def _layout_of(maps: torch.Tensor, axis: int, folded: str, n: int) -> Layout:
    shape = tuple(Layout((), axis, folded).samples_first(maps, n).shape[1:])
    long_axes = [k for k, size in enumerate(shape, 1) if size > 1]
    if len(shape) <= 1:
        return Layout(shape or (1,), axis, folded)
    if len(long_axes) == 1:
        return Layout(shape, axis, folded, long_axes[0], "the only axis longer than 1")
    return Layout(shape, axis, folded, None, "")


def _with_given_axis(layout: Layout, channels: str) -> Layout:
    if len(layout.shape) < 2:
        return layout
    axis = 1 if channels == "first" else len(layout.shape)
    return replace(layout, channels=axis, evidence=f"as specified (@{channels})")


@contextmanager
def _differentiable(module: nn.Module) -> Iterator[None]:
    """Enable derivatives with respect to all parameters, including frozen ones."""
    states = [(p, p.requires_grad) for p in module.parameters() if p.is_floating_point()]
    for parameter, _ in states:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, previous in states:
            parameter.requires_grad_(previous)


def _with_channels(layout: Layout, maps: torch.Tensor, last_modules: _Modules) -> Layout:
    """Return a layout with the channel axis of `maps`, whose first axis is that of the samples.

    The axis is found from derivatives, or else from lengths. If neither shows it, the layout is
    returned unchanged.
    """
    if maps.requires_grad:
        for name, part in last_modules:
            for kind, parameter in _test_parameters(part):
                axis = _channel_axis(maps, parameter)
                if axis is not None:
                    label = f"{name}.{kind}".removeprefix(".")
                    evidence = f"one entry of {label} acts on one slice of this axis"
                    return replace(layout, channels=axis, evidence=evidence)
    for name, part in last_modules[:_MAX_LENGTHS]:
        for kind, parameter in part.named_parameters(recurse=False):
            length = parameter.shape[0] if parameter.ndim else 1
            axes = [k for k, size in enumerate(layout.shape, 1) if size == length > 1]
            if len(axes) == 1:
                label = f"{name}.{kind}".removeprefix(".")
                evidence = f"the only axis as long as {label}"
                return replace(layout, channels=axes[0], evidence=evidence)
    return layout


def _test_parameters(part: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the vectors among a module's parameters, the bias first; all, if none is a vector."""
    parameters = list(reversed(list(part.named_parameters(recurse=False))))
    vectors = [(kind, p) for kind, p in parameters if max(p.shape, default=0) == p.numel() > 1]
    return vectors or parameters


def _channel_axis(maps: torch.Tensor, parameter: torch.Tensor) -> int | None:
    """Return the axis along which one entry (or row) of a parameter changes only one slice.

    Different entries must change different slices, since entries that all change the class token do
    not show the channel axis. Return None if there is no such axis, or more than one.

    The derivative of the maps along a direction u of the parameter p is the derivative of
    <d<maps, v>/dp, u> with respect to v.
    """
    try:
        v = torch.ones_like(maps, requires_grad=True)
        slope = _derivative((maps * v).sum(), parameter, create_graph=True)
        if slope is None:
            return None
        slope = slope.squeeze()
        axes: set[int] = set()
        for dim in range(min(slope.ndim, 2)):
            if slope.shape[dim] < 2:
                continue
            rows = slope.movedim(dim, 0).flatten(1) if slope.ndim > 1 else slope[:, None]
            weights = torch.linspace(1, 2, rows.shape[1]).to(rows)
            slices = [
                _confined(_derivative((rows[k] * weights).sum(), v))
                for k in rows.detach().abs().sum(1).topk(2).indices.tolist()
            ]
            axes |= {axis for axis, k in slices[0].items() if slices[1].get(axis, k) != k}
        return axes.pop() if len(axes) == 1 else None
    except OUT_OF_MEMORY:
        raise
    except RuntimeError:  # some function has no second derivative; the next parameter may work
        return None


def _derivative(
    of: torch.Tensor, by: torch.Tensor, create_graph: bool = False
) -> torch.Tensor | None:
    if not of.requires_grad:
        return None
    return torch.autograd.grad(
        of, by, create_graph=create_graph, retain_graph=True, allow_unused=True
    )[0]


def _confined(derivative: torch.Tensor | None) -> dict[int, int]:
    """Return the axes along which a derivative is confined to one slice, each with its index."""
    if derivative is None:
        return {}
    square = derivative.detach().double().square()
    total = square.sum()
    if not bool(total > 0):
        return {}
    axes = [axis for axis in range(1, derivative.ndim) if derivative.shape[axis] > 1]
    sums = {axis: square.movedim(axis, 0).flatten(1).sum(1) for axis in axes}
    return {
        axis: int(sums[axis].argmax())
        for axis in axes
        if bool(sums[axis].max() >= _MIN_CONFINED * total)
    }

"""Which axis of a feature map holds the samples, and which its channels: found by evidence.

(n, c, h, w), (n, h, w, c), tokens (n, t, c), (n, c, t) or (t, n, c), video, windows folded into the
batch: shapes do not tell them apart, and a mean over the wrong axes is no feature of anything.

The samples: replace one image, and see along which axis the change is confined.

The channels: the derivative of the map with respect to one entry of a bias (or one row of a
weight) lies in one slice of the channel axis, and in all slices of the others. Of the parameters
applied before the map is returned the last that decides is asked, as a mixer's tokens have weights
too. If derivatives say nothing, the length of such a parameter does, if only one axis has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from ..errors import FeatureError
from ..trajectory.trajectory import entry_key, features_key
from .residual_blocks import BlockSpec, evaluating, hooked, run
from .taps import tapped

_FEW = 2  # images whose derivatives are taken
_ASKED = 16  # modules with parameters, from the last, before derivatives are given up
_SIZED = 4  # modules whose lengths are asked
_CONFINED = 0.95  # share of a derivative's square in one slice; the rest may leak through a gate
_CHANGE = 1e-6  # of the largest entry, beyond rounding


@dataclass(frozen=True)
class Layout:
    """Where a tensor has its samples and channels.

    Attributes
    ----------
    shape : tuple of int
        Of one sample's map, as returned, without the axis of samples (windows folded into it
        count as an axis of their own).
    samples : int
        The axis of samples in the tensor.
    folded : str
        ``outer`` or ``inner`` if that axis holds parts of samples: a sample's parts side by side,
        or the samples of one part.
    channels : int or None
        The axis in a sample's map that holds channels, counted from 1; None if nothing tells.
    evidence : str
        How the channel axis is known.
    """

    shape: tuple[int, ...]
    samples: int = 0
    folded: str = ""
    channels: int | None = 1
    evidence: str = "a vector a sample"

    def samples_first(self, maps: torch.Tensor, n: int) -> torch.Tensor:
        """Return the map with the samples on its first axis, n of them."""
        maps = maps.movedim(self.samples, 0)
        if self.folded == "outer":
            return maps.unflatten(0, (n, -1))
        if self.folded == "inner":
            return maps.unflatten(0, (-1, n)).transpose(0, 1)
        return maps

    def channels_first(self, maps: torch.Tensor, n: int) -> torch.Tensor:
        """Return the map as (n, c, ...)."""
        assert self.channels is not None
        return self.samples_first(maps, n).movedim(self.channels, 1)

    @property
    def space(self) -> tuple[int, ...]:
        """The shape of a sample's map with its channels first."""
        assert self.channels is not None
        at = self.channels - 1
        return (self.shape[at], *self.shape[:at], *self.shape[at + 1 :])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a record."""
        return asdict(self)


def find_layouts(
    module: nn.Module,
    specs: Sequence[BlockSpec],
    tap: str,
    images: torch.Tensor,
    named: str | None = None,
) -> dict[str, Layout]:
    """Return the layout of every tensor that `tapped` hands out.

    Parameters
    ----------
    module : nn.Module
        Left as it was.
    specs : sequence of BlockSpec
    tap : {"post", "pre"}
    images : Tensor, (n, ...)
        A few, as the network takes them, on its device.
    named : {"first", "last"}, optional
        Where the channels are, as the user says.

    Raises
    ------
    FeatureError
        No axis of a tensor holds the samples.
    """
    n = len(images)
    with evaluating(module):
        with torch.no_grad():
            maps = _maps(module, specs, tap, images)
            others = _maps(module, specs, tap, _one_replaced(images))
        found = {key: _with_samples(maps[key], others[key], n, key) for key in maps}
        for key, tensor in maps.items():  # what enters the first block may be the images
            if found[key].channels is None and torch.equal(tensor, images):
                found[key] = replace(found[key], channels=1, evidence="the images themselves")
        if named is not None:
            return {key: _as_named(layout, named) for key, layout in found.items()}
        unknown = [key for key, layout in found.items() if layout.channels is None]
        if not unknown:
            return found
        with _differentiable(module), torch.enable_grad():
            graph = _Graph(module, specs, tap, images[:_FEW])
            for key in sorted(unknown, key=lambda key: key.startswith(entry_key(""))):
                total = found.get(key.replace(entry_key(""), features_key(""), 1))
                # A shortcut and the sum that it is part of lie alike.
                alike = total is not None and total.shape == found[key].shape
                if alike and total is not None and total.channels is not None:
                    found[key] = replace(
                        found[key], channels=total.channels, evidence=total.evidence
                    )
                else:
                    found[key] = graph.with_channels(key, found[key])
    return found


def _maps(
    module: nn.Module, specs: Sequence[BlockSpec], tap: str, images: torch.Tensor
) -> dict[str, torch.Tensor]:
    maps: dict[str, torch.Tensor] = {}

    def put(key: str, value: torch.Tensor) -> None:
        maps[key] = value.clone()

    with tapped(module, specs, tap, put):
        run(module, images.clone())
    return maps


def _one_replaced(images: torch.Tensor) -> torch.Tensor:
    """Return the images, the one at index 1 another."""
    others = images.clone()
    noise = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(1))
    others[1] = others[1] + noise.to(others)
    return others


def _with_samples(maps: torch.Tensor, other: torch.Tensor, n: int, key: str) -> Layout:
    """Find the axis along which replacing the image at index 1 changes one sample alone."""
    changed = (maps - other).abs() > _CHANGE * maps.abs().max()
    for fold in ("", "outer", "inner"):
        for axis, size in enumerate(maps.shape):
            parts = size // n
            if size % n or (parts == 1) != (fold == ""):
                continue
            at = torch.arange(size, device=maps.device)
            own = at // parts == 1 if fold != "inner" else at % n == 1
            seen = changed.movedim(axis, 0).flatten(1).any(1) if maps.ndim > 1 else changed
            if bool(seen.any()) and not bool(seen[~own].any()):
                return _shaped(maps, axis, fold, n)
    if maps.shape[0] == n:  # samples that influence each other, or a layer that sees no image
        return _shaped(maps, 0, "", n)
    raise FeatureError(
        f"{key.partition(':')[2]!r}: of {n} images it makes a tensor of shape "
        f"{tuple(maps.shape)}, no axis of which holds the samples. Follow other modules: `layers=`."
    )


def _shaped(maps: torch.Tensor, axis: int, folded: str, n: int) -> Layout:
    layout = Layout((), axis, folded)
    shape = tuple(layout.samples_first(maps, n).shape[1:])
    long = [k for k, size in enumerate(shape, 1) if size > 1]
    if len(shape) <= 1:
        return replace(layout, shape=shape or (1,))
    if len(long) == 1:
        said = "the only axis longer than 1"
        return replace(layout, shape=shape, channels=long[0], evidence=said)
    return replace(layout, shape=shape, channels=None, evidence="")


def _as_named(layout: Layout, named: str) -> Layout:
    if len(layout.shape) < 2:
        return layout
    axis = 1 if named == "first" else len(layout.shape)
    return replace(layout, channels=axis, evidence=f"as asked (@{named})")


@contextmanager
def _differentiable(module: nn.Module) -> Iterator[None]:
    """Let derivatives be taken with respect to all parameters, frozen ones too."""
    asked = [(p, p.requires_grad) for p in module.parameters() if p.is_floating_point()]
    for parameter, _ in asked:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, before in asked:
            parameter.requires_grad_(before)


class _Graph:
    """Maps of a few images with their derivatives, and which modules ran before each."""

    def __init__(
        self, module: nn.Module, specs: Sequence[BlockSpec], tap: str, images: torch.Tensor
    ) -> None:
        self.n = len(images)
        self.maps: dict[str, torch.Tensor] = {}
        self.ran: list[tuple[str, nn.Module]] = []
        self.before: dict[str, int] = {}

        def put(key: str, value: torch.Tensor) -> None:
            self.maps[key] = value.clone()
            self.before[key] = len(self.ran)

        with hooked() as keep:
            for name, part in module.named_modules():
                if any(True for _ in part.parameters(recurse=False)):
                    keep(part.register_forward_hook(self._end(name)))
            with tapped(module, specs, tap, put):
                run(module, images.clone())

    def _end(self, name: str) -> Any:
        def hook(part: nn.Module, *_: Any) -> None:
            self.ran.append((name, part))

        return hook

    def with_channels(self, key: str, layout: Layout) -> Layout:
        """Find the channel axis of one map, by derivatives or else by lengths."""
        if key not in self.maps:
            return layout
        maps = layout.samples_first(self.maps[key], self.n)
        last = list(dict.fromkeys(reversed(self.ran[: self.before[key]])))
        if maps.requires_grad:
            for name, part in last[:_ASKED]:
                for kind, parameter in _telling(part):
                    axis = _acts_on(maps, parameter)
                    if axis is not None:
                        said = f"one entry of {name}.{kind} acts on one slice of it"
                        return replace(layout, channels=axis, evidence=said.replace(" .", " "))
        for name, part in last[:_SIZED]:
            for kind, parameter in part.named_parameters(recurse=False):
                length = parameter.shape[0] if parameter.ndim else 1
                axes = [k for k, size in enumerate(layout.shape, 1) if size == length > 1]
                if len(axes) == 1:
                    said = f"the only axis as long as {name}.{kind}"
                    return replace(layout, channels=axes[0], evidence=said)
        return layout


def _telling(part: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters of a module to ask: vectors if it has some, bias first, else the others."""
    own = list(reversed(list(part.named_parameters(recurse=False))))
    vectors = [(kind, p) for kind, p in own if max(p.shape, default=0) == p.numel() > 1]
    return vectors or own


def _acts_on(maps: torch.Tensor, parameter: torch.Tensor) -> int | None:
    """Return the axis of which one slice depends on one entry, or row, of a parameter.

    Another entry acts on another slice: what acts on the class token alone, whichever entry it is,
    does not tell tokens from channels.

    The derivative of the maps in one direction of the parameter is that of a derivative in the
    other order: of <d<maps, v>/dp, direction> with respect to v.
    """
    try:
        v = torch.ones_like(maps, requires_grad=True)
        slope = _derivative((maps * v).sum(), parameter, create_graph=True)
        if slope is None:
            return None
        slope = slope.squeeze()
        hits: set[int] = set()
        for dim in range(min(slope.ndim, 2)):
            if slope.shape[dim] < 2:
                continue
            rows = slope.movedim(dim, 0).flatten(1) if slope.ndim > 1 else slope[:, None]
            spread = torch.linspace(1, 2, rows.shape[1]).to(rows)
            slices = [
                _confined(_derivative((rows[k] * spread).sum(), v))
                for k in rows.detach().abs().sum(1).topk(2).indices.tolist()
            ]
            hits |= {axis for axis, at in slices[0].items() if slices[1].get(axis, at) != at}
        return hits.pop() if len(hits) == 1 else None
    except RuntimeError:  # a function without a second derivative; the next parameter may do
        return None


def _derivative(
    of: torch.Tensor, by: torch.Tensor, create_graph: bool = False
) -> torch.Tensor | None:
    if not of.requires_grad:
        return None
    return torch.autograd.grad(
        of, by, create_graph=create_graph, retain_graph=True, allow_unused=True
    )[0]


def _confined(image: torch.Tensor | None) -> dict[int, int]:
    """Return the axes, except for the samples', along which a derivative is in one slice: which."""
    if image is None:
        return {}
    square = image.detach().double().square()
    total = square.sum()
    if not bool(total > 0):
        return {}
    axes = [axis for axis in range(1, image.ndim) if image.shape[axis] > 1]
    sums = {axis: square.movedim(axis, 0).flatten(1).sum(1) for axis in axes}
    return {
        axis: int(sums[axis].argmax())
        for axis in axes
        if bool(sums[axis].max() >= _CONFINED * total)
    }

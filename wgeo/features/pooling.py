"""Feature maps made vectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from ..errors import ArgumentError, FeatureError

Pool = Callable[[torch.Tensor], torch.Tensor]
_AXES = ("first", "last")


def pooling(pool: str) -> Pool:
    """Return the function that turns a batch of feature maps into a matrix (n, d).

    It takes maps with the samples on the first axis and the channels on the second: (n, c, h, w),
    tokens (n, c, t), video (n, c, t, h, w). `wgeo.trace` finds the axes of what a network returns,
    and moves them there.

    ``gap``
        Mean over space, what a convolutional network's classifier reads; mean over tokens.
    ``flat``
        Every entry.
    ``grid:K``
        K x K adaptive average over space, then flat; every pixel of maps smaller than that.
    ``cls``
        The first token.

    ``@first`` or ``@last`` after any of them says where a network has its channels, if `trace`
    cannot tell: right after the samples, or on the last axis.

    Raises
    ------
    ArgumentError
        An unknown name.
    """
    how, at, axis = pool.partition("@")
    kind, _, size = how.partition(":")
    known = how in ("gap", "flat", "cls") or (
        kind == "grid" and size.isascii() and size.isdecimal() and int(size) > 0
    )
    if not known or (at and axis not in _AXES):
        raise ArgumentError(
            f"Unknown pool {pool!r}; choose gap, flat, cls or grid:K (such as grid:2), with @first "
            "or @last if it cannot be told which axis holds the channels."
        )
    side = int(size) if size else 0
    return lambda maps: _pooled(maps, kind, side)


def channels_named(pool: str) -> str | None:
    """Return ``first`` or ``last``, if `pool` says which axis holds the channels."""
    return pool.partition("@")[2] or None


def keeps_all(pool: str) -> bool:
    """Whether every entry is kept, so that no channel axis is needed."""
    return pool.partition("@")[0] == "flat"


def _pooled(maps: torch.Tensor, kind: str, side: int) -> torch.Tensor:
    if maps.ndim == 2 or kind == "flat":
        return maps.flatten(1)
    space = tuple(range(2, maps.ndim))
    if kind == "gap":
        return maps.mean(space)
    if kind == "cls":
        if len(space) > 1:
            raise FeatureError(
                "`pool='cls'` needs tokens (n, t, c); these are feature maps. Use `pool='gap'`."
            )
        return maps[:, :, 0]
    if len(space) == 1:
        raise FeatureError("`pool='grid:K'` needs feature maps (n, c, h, w); these are tokens.")
    if len(space) > 3:
        raise FeatureError(f"Cannot pool features of shape {tuple(maps.shape)}; use `pool='flat'`.")
    sides = [min(side, maps.shape[axis]) for axis in space]  # a finer grid would repeat pixels
    average: Callable[..., torch.Tensor] = (
        functional.adaptive_avg_pool2d if len(sides) == 2 else functional.adaptive_avg_pool3d
    )
    return average(maps, sides).flatten(1)

"""Pooling of feature maps to vectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from ..errors import ArgumentError, FeatureError

Pool = Callable[[torch.Tensor], torch.Tensor]
_AXES = ("first", "last")


def pooling(pool: str) -> Pool:
    """Return the function that turns a batch of feature maps into a matrix (n, d).

    Feature maps have the axes (n, c, h, w), tokens (n, c, t), video (n, c, t, h, w). `wgeo.trace`
    moves the axes of a network's outputs into this order. Features (n, d) are unchanged.

    ``gap``
        Mean over space (as before a convolutional network's classifier) or over tokens.
    ``flat``
        All entries.
    ``grid:K``
        Averages over the cells of a grid of K x K (for video, K x K x K), flattened. Along an axis
        shorter than K, every pixel is kept.
    ``cls``
        The first token.

    If `trace` cannot find the channel axis, append ``@first`` (the axis after the samples) or
    ``@last`` (the last axis).

    Raises
    ------
    ArgumentError
        The name is unknown.
    FeatureError
        Raised by the returned function: the features are not tokens (``cls``), or they are tokens
        or have more than three axes besides samples and channels (``grid:K``).
    """
    method, separator, axis = pool.partition("@")
    kind, _, size = method.partition(":")
    valid = method in ("gap", "flat", "cls") or (
        kind == "grid" and size.isascii() and size.isdecimal() and int(size) > 0
    )
    if not valid or (separator and axis not in _AXES):
        raise ArgumentError(
            f"Unknown pool {pool!r}; choose gap, flat, cls or grid:K (such as grid:2), with @first "
            "or @last if the channel axis cannot be determined."
        )
    grid = int(size) if size else 0
    return lambda maps: _pool(maps, kind, grid)


def channel_axis(pool: str) -> str | None:
    """Return ``first`` or ``last`` if `pool` specifies the channel axis, else None."""
    return pool.partition("@")[2] or None


def keeps_all(pool: str) -> bool:
    """Return whether all entries are kept, so that the channel axis is not needed."""
    return pool.partition("@")[0] == "flat"


def _pool(maps: torch.Tensor, kind: str, grid: int) -> torch.Tensor:
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
    sizes = [min(grid, maps.shape[axis]) for axis in space]  # a finer grid would repeat pixels
    average: Callable[..., torch.Tensor] = (
        functional.adaptive_avg_pool2d if len(sizes) == 2 else functional.adaptive_avg_pool3d
    )
    return average(maps, sizes).flatten(1)

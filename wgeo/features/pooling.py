"""Feature maps made vectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..errors import ArgumentError, FeatureError

Pool = Callable[[torch.Tensor], torch.Tensor]


def pooling(pool: str) -> Pool:
    """Return the function that turns a batch of feature maps into a matrix (n, d).

    ``gap``
        Mean over space, what a convolutional network's classifier reads; mean over tokens.
    ``flat``
        Every entry.
    ``grid:K``
        K x K adaptive average over space, then flat; every pixel of maps smaller than that.
    ``cls``
        The first token.

    Raises
    ------
    ArgumentError
        An unknown name.
    """
    kind, _, size = pool.partition(":")
    if pool in ("gap", "flat", "cls") or (kind == "grid" and size.isdecimal() and int(size) > 0):
        side = int(size) if size else 0
        return lambda maps: _pooled(maps, kind, side)
    raise ArgumentError(f"Unknown pool {pool!r}; choose gap, flat, cls or grid:K (such as grid:2).")


def _pooled(maps: torch.Tensor, kind: str, side: int) -> torch.Tensor:
    if maps.ndim == 2 or kind == "flat":
        return maps.flatten(1)
    if maps.ndim == 3:  # (n, tokens, d)
        if kind == "grid":
            raise FeatureError("pool='grid:K' needs feature maps (n, c, h, w); these are tokens.")
        return maps[:, 0] if kind == "cls" else maps.mean(1)
    if maps.ndim != 4:
        raise FeatureError(f"Cannot pool features of shape {tuple(maps.shape)}; use pool='flat'.")
    if kind == "cls":
        raise FeatureError("pool='cls' needs tokens (n, t, d); these are feature maps. Use 'gap'.")
    if kind == "gap":
        return maps.mean((2, 3))
    h, w = maps.shape[2:]  # a finer grid would only repeat pixels
    return nn.functional.adaptive_avg_pool2d(maps, (min(side, h), min(side, w))).flatten(1)

"""Features a block of rows at a time: checked, and of a size that stays in a CPU's cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from ..arrays.checks import as_array, as_points, check_plain
from ..errors import FeatureError

BLOCK = 2**18
"""Entries held in float64 at a time (2 MiB): small enough to stay in a CPU's cache."""

_LEAST_ROWS = 8


def row_blocks(
    features: Any, name: str, seen: int
) -> Iterator[tuple[slice, Float[torch.Tensor, "b d"]]]:
    """Checked row blocks of `features`, of about `BLOCK` entries, where float64 can be had."""
    layer = f"layer {name!r}"
    x = features if isinstance(features, torch.Tensor) else as_array(features, layer)
    if isinstance(x, torch.Tensor):
        check_plain(x, layer)
    if x.ndim not in (1, 2) or 0 in x.shape:
        raise FeatureError(
            f"layer {name!r} must be (samples, features); it has shape {tuple(x.shape)}. "
            "Pool or flatten it first."
        )
    step = max(_LEAST_ROWS, BLOCK // (x.shape[1] if x.ndim == 2 else 1))
    for start in range(0, len(x), step):
        part = x[start : start + step]
        if isinstance(part, torch.Tensor):
            part = part.detach()
            part = part.cpu() if part.device.type == "mps" else part  # which has no float64
        block = as_points(part, name=f"layer {name!r}", start=seen + start)
        yield slice(start, start + len(block)), block


def precision_of(features: Any) -> float:
    """Distance from 1 to the next number of the features' own type; of float64 for integers."""
    if isinstance(features, torch.Tensor):
        floating = features.is_floating_point()
        return torch.finfo(features.dtype if floating else torch.float64).eps
    kind = np.asarray(features).dtype
    return float(np.finfo(kind if kind.kind == "f" else np.float64).eps)


def mean_of(features: Any, name: str) -> Float[np.ndarray, " d"]:
    """Mean of the rows in float64, in blocks; refuses NaN and infinity."""
    total: Any = 0.0
    for _, block in row_blocks(features, name, 0):
        total = total + block.sum(0, dtype=torch.float64)
    return (total / len(features)).cpu().numpy()


def check_length(name: str, features: Any, index: Int[np.ndarray, " n"]) -> None:
    if isinstance(features, torch.Tensor):
        check_plain(features, f"layer {name!r}")
    if len(features) != len(index):
        raise FeatureError(f"layer {name!r} has {len(features)} samples for {len(index)} labels.")

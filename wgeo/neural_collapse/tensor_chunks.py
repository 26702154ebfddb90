"""Checked chunks of rows as torch tensors on their own device, small enough for a CPU cache.

Unlike `wgeo.arrays.rows.row_chunks`, chunks keep the features' dtype and device, and their size
does not depend on the memory limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ..arrays.checks import as_array, as_points, check_plain
from ..errors import FeatureError

CHUNK_ENTRIES = 2**18
"""Entries of a chunk (2 MiB in float64): few enough for a CPU's cache."""

_MIN_ROWS = 8


def tensor_chunks(
    features: Any, name: str, start: int = 0, samples: int | None = None
) -> Iterator[tuple[slice, Float[torch.Tensor, "b d"]]]:
    """Yield checked chunks of rows and their slices, on a device that supports float64.

    `start` is the number of samples before these, for error messages. `samples` is the number of
    labels, if known; if it is 0, there are no chunks. Raises FeatureError.
    """
    layer = f"layer {name!r}"
    x = features if isinstance(features, torch.Tensor) else as_array(features, layer)
    if isinstance(x, torch.Tensor):
        check_plain(x, layer)
    if samples is not None and len(x) != samples:
        raise FeatureError(f"{layer} has {len(x)} samples for {samples} labels.")
    if samples == 0:
        return
    if x.ndim not in (1, 2) or 0 in x.shape:
        raise FeatureError(
            f"{layer} must be (samples, features); it has shape {tuple(x.shape)}. "
            "Pool or flatten it first."
        )
    step = max(_MIN_ROWS, CHUNK_ENTRIES // (x.shape[1] if x.ndim == 2 else 1))
    for first in range(0, len(x), step):
        part = x[first : first + step]
        if isinstance(part, torch.Tensor):
            part = part.detach()
            part = part.cpu() if part.device.type == "mps" else part  # MPS has no float64
        chunk = as_points(part, name=layer, start=start + first)
        yield slice(first, first + len(chunk)), chunk


def precision_of(features: Any) -> float:
    """Return the machine epsilon of the features' dtype; for integers, that of float64."""
    if isinstance(features, torch.Tensor):
        floating = features.is_floating_point()
        return torch.finfo(features.dtype if floating else torch.float64).eps
    kind = np.asarray(features).dtype
    return float(np.finfo(kind if kind.kind == "f" else np.float64).eps)

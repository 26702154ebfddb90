"""All pairs of two clouds, a tile (a block of rows) at a time.

Most tiles are ``bias_j + scale <x_i, y_j>``; the inner products can be stored (`store_products`).
Each process visits its own rows, and `reduce_tiles` combines the parts of all processes. When a GPU
runs out of memory, tiles become smaller.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ContextDecorator
from typing import TypeVar

import torch
from jaxtyping import Float

from ..runtime import processes
from ..runtime.memory import block_entries, halve_blocks
from ..runtime.threads import raise_if_interrupted

T = TypeVar("T")

# Largest number of entries of a tile: few enough for a CPU's cache, or enough to occupy a GPU.
TILE_ENTRIES = {"cpu": 1 << 20, "cuda": 1 << 26}
# Largest number of products stored between passes: 128 MiB in float64, or 1 GiB on a GPU. They make
# iterations nearly two times faster at d = 64, and six times faster at d = 512.
STORED_ENTRIES = {"cpu": 1 << 24, "cuda": 1 << 27}
CHUNK_ENTRIES = {"cpu": 1 << 15, "cuda": 1 << 22}  # entries of a float64 copy of some rows
_MIN_ROWS = 64
_STORED_ROWS = 256  # rows of stored products computed at a time
_PANEL = 512  # features summed at a time, for smaller rounding errors (`roundings`)


def per_device(table: dict[str, int], device: torch.device) -> int:
    """Return a device's entry of a table; devices without one are treated as the CPU."""
    return table.get(device.type, table["cpu"])


def chunks(n: int, width: int, device: torch.device, least: int = 1) -> Iterator[slice]:
    """Return slices of n rows, to be copied to float64 one at a time.

    A slice has at most `CHUNK_ENTRIES` entries, but at least `least` rows.
    """
    step = max(least, per_device(CHUNK_ENTRIES, device) // width)
    return (slice(k, min(k + step, n)) for k in range(0, n, step))


def map_tiles(
    work: Callable[[slice, torch.Tensor], T],
    fill: Callable[[slice, torch.Tensor], torch.Tensor],
    shape: tuple[int, int],
    like: torch.Tensor,
    most: int | None = None,
) -> Iterator[tuple[slice, T]]:
    """Yield ``rows, work(rows, tile)`` for tiles of this process's rows.

    ``fill(rows, out)`` writes a tile into `out`, which has the dtype and device of `like`; the next
    tile overwrites it. A tile has at most `most` and at most `TILE_ENTRIES` entries, but at least
    `_MIN_ROWS` rows. If a GPU runs out of memory, `fill` and `work` are called again for smaller
    tiles. A process without rows has one empty tile.
    """
    height, width = shape
    size = min(per_device(TILE_ENTRIES, like.device), most or sys.maxsize)
    shard, buffer = processes.shard(height), None
    rows = slice(shard.start, shard.start)
    while rows.stop < shard.stop or buffer is None:
        raise_if_interrupted()
        step = max(block_entries(size) // width, block_entries(_MIN_ROWS))
        part = slice(rows.stop, min(rows.stop + step, shard.stop))
        try:
            if buffer is None:
                buffer = like.new_empty((part.stop - part.start, width))
            value = work(part, fill(part, buffer[: part.stop - part.start]))
        except torch.OutOfMemoryError:
            if not halve_blocks():
                raise
            buffer = None
        else:
            rows = part
            yield rows, value


def reduce_tiles(
    tiles: Iterable[tuple[slice, Sequence[torch.Tensor]]], n: int, by_row: int = 1
) -> list[torch.Tensor]:
    """Combine the tensors that `work` returned for each tile, over the tiles of all processes.

    The first `by_row` tensors have an entry for each row of the tile, and are joined to n rows. The
    others are summed.
    """
    results: list[torch.Tensor] = []
    for rows, values in tiles:
        for k, value in enumerate(values):
            if len(results) <= k:
                shape = (n, *value.shape[1:]) if k < by_row else value.shape
                results.append(value.new_zeros(shape))
            if k < by_row:
                results[k][rows] = value
            else:
                results[k] += value
    return [processes.all_reduce_sum(result) for result in results]


def products(
    x: Float[torch.Tensor, "n d"],
    y: Float[torch.Tensor, "m d"],
    bias: Float[torch.Tensor, " m"],
    scale: float,
    out: Float[torch.Tensor, "n m"],
) -> Float[torch.Tensor, "n m"]:
    """Write ``bias_j + scale <x_i, y_j>`` to `out`, summed a panel of features at a time."""
    if x.shape[1] <= _PANEL:
        return torch.addmm(bias, x, y.T, alpha=scale, out=out)
    torch.mm(x[:, :_PANEL], y[:, :_PANEL].T, out=out)
    for k in range(_PANEL, x.shape[1], _PANEL):
        out += x[:, k : k + _PANEL] @ y[:, k : k + _PANEL].T
    return out.mul_(scale).add_(bias)


def roundings(d: int) -> int:
    """Return the largest number of roundings of a term in an inner product by `products`."""
    return d if d <= _PANEL else _PANEL + 2 * -(-d // _PANEL)


def store_products(
    x: Float[torch.Tensor, "n d"], y: Float[torch.Tensor, "m d"]
) -> Float[torch.Tensor, "n m"] | None:
    """Return all <x_i, y_j>; None if the GPU has too little memory."""
    try:
        out, zero = x.new_empty((len(x), len(y))), y.new_zeros(len(y))
        for part, rows in zip(out.split(_STORED_ROWS), x.split(_STORED_ROWS), strict=True):
            products(rows, y, zero, 1.0, part)
    except torch.OutOfMemoryError:
        return None
    return out


def squared_distances(
    x: Float[torch.Tensor, "n d"], y: Float[torch.Tensor, "m d"]
) -> Float[torch.Tensor, "n m"]:
    """Return ||x_i - y_j||^2 from differences, with relative error (d + 2) u, u the unit roundoff.

    This is slower than a matrix product, but accurate even if points nearly coincide.
    """
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_()


class _FullPrecision(ContextDecorator):
    """Disable TF32: its 10-bit mantissa is too coarse for costs, which are differences.

    The setting is global: of several threads in this context, the first saves it, and the last
    restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._before = "highest"

    def __enter__(self) -> None:
        with self._lock:
            if self._depth == 0:
                self._before = torch.get_float32_matmul_precision()
                torch.set_float32_matmul_precision("highest")
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                torch.set_float32_matmul_precision(self._before)


full_precision = _FullPrecision()

"""Record the features of every layer in a forward pass, pooled to vectors, in host memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ..arrays.checks import as_numpy
from ..errors import ArgumentError, FeatureError
from ..models.parts import evaluating, first_tensor, hooked, tables_in
from ..storage.record import PENULTIMATE
from ..trajectory.trajectory import entry_key, features_key
from .head import Head, find_head
from .layout import Layout, find_layouts
from .network import device_and_dtype
from .residual_blocks import BlockSpec, run
from .taps import tensor_hooks

HEAD_INPUT, LOGITS = ":head", ":logits"  # input and output of the classifier; not layers
Batch = dict[str, np.ndarray]


@dataclass
class Recorder:
    """Records the features of images at a network's blocks, batch by batch."""

    module: nn.Module
    specs: tuple[BlockSpec, ...]
    pool: str
    tap: str
    # Layouts of every layer's features and of every recorded entry, which is a shortcut's output.
    layouts: dict[str, Layout]
    head: Head
    penultimate: bool = False  # whether the classifier's input differs from the last block's output
    max_batch: int | None = None  # images per pass; None until the device has run out of memory

    @classmethod
    def of(
        cls,
        module: nn.Module,
        specs: tuple[BlockSpec, ...],
        pool: str,
        tap: str,
        probe: torch.Tensor,
    ) -> Recorder:
        """Create a recorder; the layouts and the classifier are found from a few images."""
        layouts = find_layouts(module, specs, tap, probe, pool.partition("@")[2] or None)
        if not _keeps_all(pool):
            _require_channels(layouts, pool)
        recorder = cls(module, specs, pool, tap, layouts, find_head(module, probe))
        recorder._drop_entries()
        rows = recorder.record(probe, probe.device)
        names = [spec.name for spec in specs]
        recorder.penultimate = (
            HEAD_INPUT in rows
            and PENULTIMATE not in names
            and not _close(rows[HEAD_INPUT], rows[features_key(names[-1])])
        )
        return recorder

    def record(self, x: torch.Tensor, device: torch.device) -> Batch:
        """Pass a batch through the network, in smaller parts if the device runs out of memory.

        Return the layers' features and the entries (outputs of shortcuts) by their keys in a store.
        If the classifier's input and the logits are known, they are `HEAD_INPUT` and `LOGITS`.
        """
        parts: list[Batch] = []
        start = 0
        while start < len(x):
            size = min(self.max_batch or len(x), len(x) - start)
            try:
                parts.append(self._pass(x[start : start + size], device))
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                self.max_batch = size // 2
                continue
            start += size
        if len(parts) == 1:
            return parts[0]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def stages(self) -> list[tuple[str, int | None]]:
        """Return the names of the layers in execution order, each with its stage."""
        layers: list[tuple[str, int | None]] = [("input", None), ("stem", 0)]
        stage, space = 0, self._space(features_key("stem"))
        for spec in self.specs:
            own_space = self._space(features_key(spec.name))
            if entry_key(spec.name) in self.layouts or own_space != space:
                stage, space = stage + 1, own_space
            layers.append((spec.name, stage))
        return [*layers, (PENULTIMATE, None)] if self.penultimate else layers

    def describe_axes(self) -> list[dict[str, Any]]:
        """Return the layout of each layer, and how its channels were found, for the record."""
        return [
            {"layer": key.partition(":")[2], **self.layouts[key].to_dict()}
            for key in map(features_key, ("stem", *(spec.name for spec in self.specs)))
        ]

    def _space(self, key: str) -> tuple[int, ...]:
        layout = self.layouts[key]
        return layout.shape if _keeps_all(self.pool) else layout.space

    def _drop_entries(self) -> None:
        """Drop the entries (outputs) of identity shortcuts, with two exceptions.

        Such an entry usually repeats the previous layer. It is kept if the block adds its branch to
        an argument other than its first. It is also kept if the feature space has changed since the
        previous layer, except in the first block.
        """
        previous = [features_key(name) for name in ("stem", *(spec.name for spec in self.specs))]
        for last, spec in zip(previous, self.specs, strict=False):
            key = entry_key(spec.name)
            if key not in self.layouts or spec.shortcut is not None:
                continue
            other = spec.sum is None and spec.argument != 0
            if not other and (spec is self.specs[0] or self._space(key) == self._space(last)):
                del self.layouts[key]

    def _pass(self, x: torch.Tensor, device: torch.device) -> Batch:
        _, dtype = device_and_dtype(self.module)
        rows = {features_key("input"): _on_host(x.flatten(1))}

        def put(key: str, maps: torch.Tensor) -> None:
            if key in self.layouts:
                rows[key] = _on_host(self._pool(key, maps, len(x)))

        def put_head_input(_: nn.Module, args: tuple[Any, ...]) -> None:
            value = first_tensor(args)
            if value is not None and value.ndim > 1:
                rows[HEAD_INPUT] = _on_host(value.flatten(1))

        with evaluating(self.module), torch.no_grad(), hooked() as register:
            if self.head.name is not None:
                layer = self.module.get_submodule(self.head.name)
                register(layer.register_forward_pre_hook(put_head_input))
            with tensor_hooks(self.module, self.specs, self.tap, put):
                # A copy, since the network may overwrite its input.
                out = run(self.module, x.to(device, dtype, copy=True))
        if self.head.output is not None:
            rows[LOGITS] = _on_host(tables_in(out)[self.head.output])
        if self.penultimate:
            rows[features_key(PENULTIMATE)] = rows[HEAD_INPUT]
        return rows

    def _pool(self, key: str, maps: torch.Tensor, count: int) -> torch.Tensor:
        layout = self.layouts[key]
        if _keeps_all(self.pool):
            return layout.samples_first(maps, count).flatten(1)
        return pooling(self.pool)(layout.channels_first(maps, count))


def _on_host(rows: torch.Tensor) -> np.ndarray:
    """Return a copy in host memory, which a later in-place activation does not change."""
    return np.array(as_numpy(rows), np.float64 if rows.dtype == torch.float64 else np.float32)


def _close(x: np.ndarray, y: np.ndarray) -> bool:
    """Return whether features are equal up to rounding."""
    return x.shape == y.shape and np.allclose(x, y, rtol=1e-4, atol=1e-4 * float(np.abs(x).max()))


def _require_channels(layouts: dict[str, Layout], pool: str) -> None:
    for key, layout in layouts.items():
        if layout.channels is None:
            shape = ", ".join(map(str, layout.shape))
            method = pool.partition("@")[0]
            raise FeatureError(
                f"{key.partition(':')[2]!r} returns maps of shape (n, {shape}), and the channel "
                "axis could not be found from the block's parameters. Specify it: "
                f"`pool='{method}@first'` for (n, c, ...), `pool='{method}@last'` for (n, ..., c); "
                "or keep every value with `pool='flat'`."
            )


def pooling(pool: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function that turns a batch of feature maps into a matrix (n, d).

    The function takes tensors with the channels on axis 1: feature maps (n, c, h, w), tokens
    (n, c, t) or video (n, c, t, h, w). It returns features (n, d) unchanged.

    ``gap``
        Mean over space (as before a convolutional network's classifier) or over tokens.
    ``flat``
        All entries.
    ``grid:K``
        Averages over the cells of a grid of K x K (for video, K x K x K), flattened. Along an axis
        shorter than K, every pixel is kept.
    ``cls``
        The first token.

    The name may end in ``@first`` or ``@last``. This gives the channel axis of the network's
    outputs, and does not affect the returned function.

    Raises
    ------
    ArgumentError
        The name is unknown.
    FeatureError
        The returned function raises it for ``cls`` if the features are not tokens, and for
        ``grid:K`` if they are tokens or have more than three axes of space.
    """
    method, separator, axis = pool.partition("@")
    kind, _, size = method.partition(":")
    valid = method in ("gap", "flat", "cls") or (
        kind == "grid" and size.isascii() and size.isdecimal() and int(size) > 0
    )
    if not valid or (separator and axis not in ("first", "last")):
        raise ArgumentError(
            f"Unknown pool {pool!r}; choose gap, flat, cls or grid:K (such as grid:2), with @first "
            "or @last if the channel axis cannot be determined."
        )
    grid = int(size) if size else 0
    return lambda maps: _pooled(maps, kind, grid)


def _keeps_all(pool: str) -> bool:
    """Return whether all entries are kept, so that the channel axis is not needed."""
    return pool.partition("@")[0] == "flat"


def _pooled(maps: torch.Tensor, kind: str, grid: int) -> torch.Tensor:
    if maps.ndim == 2 or kind == "flat":
        return maps.flatten(1)
    space = tuple(range(2, maps.ndim))
    if kind == "gap":
        return maps.mean(space)
    if kind == "cls":
        if len(space) > 1:
            raise FeatureError(
                "`pool='cls'` needs tokens; these are feature maps. Use `pool='gap'`."
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

"""Record pooled features of every layer during a forward pass, in host memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ..arrays.checks import as_numpy
from ..errors import FeatureError
from ..models.parts import evaluating, first_tensor, hooked, tables_in
from ..storage.record import PENULTIMATE
from ..trajectory.trajectory import entry_key, features_key
from .head import Head, find_head
from .layout import Layout, find_layouts
from .network import device_and_dtype
from .pooling import channel_axis, keeps_all, pooling
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
    layouts: dict[str, Layout]  # of every recorded layer and entry
    head: Head = field(default_factory=Head)
    penultimate: bool = False  # whether the classifier's input differs from the last block's output
    max_batch: int | None = None  # images per pass; None until the device has run out of memory
    _rows: Batch = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        module: nn.Module,
        specs: Sequence[BlockSpec],
        pool: str,
        tap: str,
        probe: torch.Tensor,
    ) -> Recorder:
        """Create a recorder, with the layouts detected from a few images."""
        layouts = find_layouts(module, specs, tap, probe, channel_axis(pool))
        if not keeps_all(pool):
            _require_channels(layouts, pool)
        recorder = cls(module, tuple(specs), pool, tap, layouts, find_head(module, probe))
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

        Return features and entries by their keys in a store; also the classifier's input and
        output, if known, as `HEAD_INPUT` and `LOGITS`.
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
        return layout.shape if keeps_all(self.pool) else layout.space

    def _drop_entries(self) -> None:
        """Drop the entries of identity shortcuts, which usually repeat the previous layer.

        An entry is kept if the block adds its branch to an argument other than its first; or, after
        the first block, if the feature space has changed since the previous layer.
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
        self._rows = {}
        count = len(x)

        def put(key: str, maps: torch.Tensor) -> None:
            if key in self.layouts:
                self._keep(key, self._pool(key, maps, count))

        with evaluating(self.module), torch.no_grad(), hooked() as register:
            if self.head.name is not None:
                layer = self.module.get_submodule(self.head.name)
                register(layer.register_forward_pre_hook(self._keep_head_input))
            self._keep(features_key("input"), x.flatten(1))
            with tensor_hooks(self.module, self.specs, self.tap, put):
                # A copy, since the network may work in place on the caller's images.
                out = run(self.module, x.to(device, dtype, copy=True))
        if self.head.output is not None:
            self._keep(LOGITS, tables_in(out)[self.head.output])
        if self.penultimate:
            self._rows[features_key(PENULTIMATE)] = self._rows[HEAD_INPUT]
        return self._rows

    def _pool(self, key: str, maps: torch.Tensor, count: int) -> torch.Tensor:
        layout = self.layouts[key]
        if keeps_all(self.pool):
            return layout.samples_first(maps, count).flatten(1)
        return pooling(self.pool)(layout.channels_first(maps, count))

    def _keep_head_input(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        x = first_tensor(args)
        if x is not None and x.ndim > 1:
            self._keep(HEAD_INPUT, x.flatten(1))

    def _keep(self, key: str, rows: torch.Tensor) -> None:
        kind = np.float64 if rows.dtype == torch.float64 else np.float32
        # A copy, so that a later in-place activation does not change it.
        self._rows[key] = np.array(as_numpy(rows), dtype=kind)


def _close(x: np.ndarray, y: np.ndarray) -> bool:
    """Return whether a classifier's input is equal to a layer's features, up to rounding."""
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

"""What the hooks of one forward pass saw: pooled rows of every layer, in host memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ..arrays.checks import as_numpy
from ..errors import FeatureError
from ..models.parts import classifier_of, logits_of
from ..trajectory.trajectory import entry_key, features_key
from .layout import Layout, find_layouts
from .network import home_of
from .pooling import channels_named, keeps_all, pooling
from .residual_blocks import BlockSpec, evaluating, first_tensor, hooked, run
from .taps import tapped

HEAD, LOGITS = ":head", ":logits"  # what the classifier reads and returns; no layers
Batch = dict[str, np.ndarray]


@dataclass
class Recorder:
    """Follows images through a network's blocks, a batch at a time.

    Attributes
    ----------
    layouts : dict of str to Layout
        Of every layer and entry that is kept, by its key.
    most : int or None
        How many images fit the device at once, once that was found out.
    """

    module: nn.Module
    specs: tuple[BlockSpec, ...]
    pool: str
    tap: str
    layouts: dict[str, Layout]
    most: int | None = None
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
        """Find out how the layers lie in memory, with a few images."""
        layouts = find_layouts(module, specs, tap, probe, channels_named(pool))
        if not keeps_all(pool):
            _require_channels(layouts, pool)
        made = cls(module, tuple(specs), pool, tap, layouts)
        made._drop_entries()
        return made

    def follow(self, x: torch.Tensor, where: torch.device) -> Batch:
        """Pass a batch through the network; where the device's memory ends, in halves.

        Returns
        -------
        dict of str to ndarray, (b, d)
            Layers under the names that a store gives them, `HEAD` and `LOGITS`.
        """
        parts: list[Batch] = []
        start = 0
        while start < len(x):
            size = min(self.most or len(x), len(x) - start)
            try:
                parts.append(self._pass(x[start : start + size], where))
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                self.most = size // 2
                continue
            start += size
        if len(parts) == 1:
            return parts[0]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def stages(self) -> list[tuple[str, int | None]]:
        """Layers in execution order, each with the feature space it lives in."""
        found: list[tuple[str, int | None]] = [("input", None), ("stem", 0)]
        stage, space = 0, self._space(features_key("stem"))
        for spec in self.specs:
            own = self._space(features_key(spec.name))
            if entry_key(spec.name) in self.layouts or own != space:
                stage, space = stage + 1, own
            found.append((spec.name, stage))
        return found

    def described(self) -> list[dict[str, Any]]:
        """Return, for a record, what each layer returns and how its channels were found."""
        return [
            {"layer": key.partition(":")[2], **self.layouts[key].to_dict()}
            for key in map(features_key, ("stem", *(spec.name for spec in self.specs)))
        ]

    def _space(self, key: str) -> tuple[int, ...]:
        layout = self.layouts[key]
        return layout.shape if keeps_all(self.pool) else layout.space

    def _drop_entries(self) -> None:
        """Keep an identity's input only if something between two blocks changed the space.

        It is then the image of the block's shortcut, in the space of its output. A block that adds
        to another of its arguments than the first begins with that.
        """
        before = [features_key(name) for name in ("stem", *(spec.name for spec in self.specs))]
        for last, spec in zip(before, self.specs, strict=False):
            key = entry_key(spec.name)
            if key not in self.layouts or spec.shortcut is not None:
                continue
            other = spec.sum is None and spec.argument != 0
            if not other and (spec is self.specs[0] or self._space(key) == self._space(last)):
                del self.layouts[key]

    def _pass(self, x: torch.Tensor, where: torch.device) -> Batch:
        _, precision = home_of(self.module)
        self._rows = {}
        count = len(x)

        def put(key: str, maps: torch.Tensor) -> None:
            if key in self.layouts:
                self._keep(key, self._pooled(key, maps, count))

        with evaluating(self.module), torch.no_grad(), hooked() as keep:
            head = classifier_of(self.module)
            if head is not None:
                keep(head.register_forward_pre_hook(self._read))
            self._keep(features_key("input"), x.flatten(1))
            with tapped(self.module, self.specs, self.tap, put):
                # A copy: the network may work in place, and these may be the caller's images.
                out = run(self.module, x.to(where, precision, copy=True))
        logits = logits_of(self.module, out)
        if logits is not None:
            self._keep(LOGITS, logits)
        return self._rows

    def _pooled(self, key: str, maps: torch.Tensor, count: int) -> torch.Tensor:
        layout = self.layouts[key]
        if keeps_all(self.pool):
            return layout.samples_first(maps, count).flatten(1)
        return pooling(self.pool)(layout.channels_first(maps, count))

    def _read(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        read = first_tensor(args)
        if read is not None and read.ndim > 1:
            self._keep(HEAD, read.flatten(1))

    def _keep(self, key: str, rows: torch.Tensor) -> None:
        kind = np.float64 if rows.dtype == torch.float64 else np.float32
        # A copy of our own is what keeps a later in-place activation out of it.
        self._rows[key] = np.array(as_numpy(rows), dtype=kind)


def _require_channels(layouts: dict[str, Layout], pool: str) -> None:
    for key, layout in layouts.items():
        if layout.channels is None:
            shape = ", ".join(map(str, layout.shape))
            how = pool.partition("@")[0]
            raise FeatureError(
                f"{key.partition(':')[2]!r} returns maps of shape (n, {shape}), and neither its "
                "parameters nor their lengths tell which axis holds the channels. Say so: "
                f"`pool='{how}@first'` for (n, c, ...), `pool='{how}@last'` for (n, ..., c); or "
                "keep every entry with `pool='flat'`."
            )

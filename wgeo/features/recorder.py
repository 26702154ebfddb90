"""What the hooks of one forward pass saw: pooled rows of every layer, in host memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from ..arrays import as_numpy
from ..blocks import BlockSpec, evaluating, first_tensor, hooked, run
from ..errors import FeatureError
from ..models import classifier_of, logits_of
from ..trajectory import entry_key, features_key
from .network import home_of
from .pooling import Pool

HEAD, LOGITS = ":head", ":logits"  # what the classifier reads and returns; no layers
Batch = dict[str, np.ndarray]


@dataclass
class Recorder:
    """Follows images through a network's blocks, a batch at a time.

    Attributes
    ----------
    most : int or None
        How many images fit the device at once, once that was found out.
    """

    module: nn.Module
    specs: tuple[BlockSpec, ...]
    pool: Pool
    tap: str
    most: int | None = None
    _shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _rows: Batch = field(default_factory=dict)

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
        """Layers in execution order, each with the feature space it lives in; after a pass."""
        found: list[tuple[str, int | None]] = [("input", None), ("stem", 0)]
        stage, shape = 0, self._shapes[features_key("stem")]
        for spec in self.specs:
            own = self._shapes[features_key(spec.name)]
            if entry_key(spec.name) in self._shapes or own != shape:
                stage, shape = stage + 1, own
            found.append((spec.name, stage))
        return found

    def _pass(self, x: torch.Tensor, where: torch.device) -> Batch:
        _, precision = home_of(self.module)
        self._rows = {}
        with evaluating(self.module), torch.no_grad(), hooked() as keep:
            self._attach(keep)
            self._keep(features_key("input"), x.flatten(1))
            # A copy: the network may work in place, and these may be the caller's images.
            out = run(self.module, x.to(where, precision, copy=True))
        logits = logits_of(self.module, out)
        if logits is not None:
            self._keep(LOGITS, logits)
        return self._rows

    def _attach(self, keep: Callable[[Any], None]) -> None:
        """Hook the stem, every block's output (or sum), shortcuts and the classifier's input."""
        parts = dict(self.module.named_modules())

        def before(part: nn.Module, key: str) -> None:
            keep(part.register_forward_pre_hook(lambda _, args: self._put(key, first_tensor(args))))

        def after(part: nn.Module, key: str) -> None:
            keep(part.register_forward_hook(lambda _, args, out: self._put(key, out)))

        before(parts[self.specs[0].name], features_key("stem"))
        for spec in self.specs:
            key = features_key(spec.name)
            if self.tap == "pre" and spec.activation is not None:
                before(parts[spec.activation], key)  # reused activations: the last call wins
            else:
                after(parts[spec.name], key)
            if spec.shortcut is not None:
                after(parts[spec.shortcut], entry_key(spec.name))
        for last, spec in pairwise(self.specs):
            if spec.residual and spec.shortcut is None:
                keep(parts[spec.name].register_forward_pre_hook(partial(self._enter, last, spec)))
        head = classifier_of(self.module)
        if head is not None:
            before(head, HEAD)

    def _enter(self, last: BlockSpec, spec: BlockSpec, _: nn.Module, args: tuple[Any, ...]) -> None:
        """Where something between two blocks changed the space, begin with what enters the next.

        That is the image of the block's identity shortcut, in the space of its output.
        """
        maps = first_tensor(args)
        if maps is not None and tuple(maps.shape[1:]) != self._shapes.get(features_key(last.name)):
            self._put(entry_key(spec.name), maps)

    def _put(self, key: str, maps: Any) -> None:
        if not isinstance(maps, torch.Tensor):  # not what the probe saw
            what = key.partition(":")[2]
            raise FeatureError(f"{what!r} takes or returns {type(maps).__name__}, not a tensor.")
        self._shapes[key] = tuple(maps.shape[1:])
        self._keep(key, maps.flatten(1) if key == HEAD else self.pool(maps))

    def _keep(self, key: str, rows: torch.Tensor) -> None:
        kind = np.float64 if rows.dtype == torch.float64 else np.float32
        # A copy of our own is what keeps a later in-place activation out of it.
        self._rows[key] = np.array(as_numpy(rows), dtype=kind)

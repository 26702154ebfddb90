"""The features and metrics of Parker, Onal, Stengel and Intrater (2023), as in their code.

Their repository is emreonal11/Neural-Collapse-in-Intermediate-Hidden-Layers-of-Classification-
Neural-Networks on GitHub. It records the flattened inputs of all convolutions and linear layers
except the first, which reads the image.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import nn

import wgeo
from wgeo.data.images import normalization


@torch.no_grad()
def inputs_of_layers(module: nn.Module, images: wgeo.Images, batch: int = 250) -> wgeo.Trajectory:
    """Return the flattened inputs of all convolutions and linear layers except the first.

    They are in the order of execution. A transformer's attention is one module that applies its
    weights itself, so it is not recorded.
    """
    module.eval()
    device = next(module.parameters()).device
    parts: dict[str, list[np.ndarray]] = {}  # by name, in the order of execution

    def keep(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            parts.setdefault(name, []).append(args[0].flatten(1).cpu().numpy().copy())

        return hook

    form = images.normalize or normalization(images.preset)
    with ExitStack() as hooks:
        for name, part in module.named_modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                hooks.enter_context(part.register_forward_pre_hook(keep(name)))
        logits = [module(x.to(device)).cpu() for x, _ in images.batches(batch, form)]
    _, *names = parts
    return wgeo.Trajectory.from_arrays(
        [np.concatenate(parts[name]) for name in names],
        images.y,
        names,
        predictions=torch.cat(logits).argmax(1).numpy(),
    )


def in_their_units(layers: dict[str, list[float | None]], classes: int) -> dict[str, Any]:
    """Return metrics in the authors' units.

    NC1 is not divided by K. The spread of norms uses the standard deviation with divisor K - 1.

    Their angle measure, the mean of ``abs(cos + 1/(K - 1))`` over pairs of centered class means, is
    `nc2_equiangle`.
    """
    factors = {"nc1": float(classes), "nc2_equinorm": float(np.sqrt(classes / (classes - 1)))}
    return {
        metric: [None if v is None else factors.get(metric, 1.0) * v for v in values]
        for metric, values in layers.items()
    }

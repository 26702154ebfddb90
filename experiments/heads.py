"""Networks whose head is a deep unconstrained feature model: a backbone, then weight matrices.

    z = W_L relu(W_{L-1} ... relu(W_1 h)),   h = backbone(image)

The backbone is a CIFAR ResNet whose classifier has d outputs h of either sign; the weight matrices
have no bias. The loss (1/2n) ||z - e_y||^2 and the decay are those of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from lab import TRAINING, Bench, key_of
from torch import nn

import wgeo
from wgeo.data.images import normalization


class Headed(nn.Module):
    """A backbone followed by L weight matrices with ReLUs between them."""

    def __init__(
        self,
        num_classes: int,
        image: tuple[int, ...],
        *,
        backbone: str,
        options: Mapping[str, Any],
        width: int,
        layers: int,
    ) -> None:
        super().__init__()
        self.backbone = wgeo.models.build(
            backbone, num_classes=width, in_channels=image[0], image_size=image[1], **options
        )
        sizes = [width] * layers + [num_classes]
        self.weights = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(sizes))
        for W in self.weights:
            nn.init.normal_(W.weight, 0.0, width**-0.5)

    def features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the inputs of W_1, ..., W_L."""
        entering = [self.backbone(x)]
        for W in self.weights[:-1]:
            entering.append(W(entering[-1]).relu())
        return entering

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weights[-1](self.features(x)[-1])


def subset(bench: Bench, data: str, classes: Sequence[int], per_class: int, **more: Any) -> Any:
    """Return the first `per_class` images of some classes, which are renumbered from 0."""
    images = bench.images(data, **more)
    rows = np.concatenate([np.flatnonzero(images.y == k)[:per_class] for k in classes])
    y = np.searchsorted(np.sort(classes), images.y[rows])
    names = tuple(images.class_names[k] for k in sorted(classes))
    return replace(images, x=images.x[rows], y=y, class_names=names)


def trained(
    bench: Bench, images: wgeo.Images, shape: Mapping[str, Any], **recipe: Any
) -> wgeo.TrainingRun:
    """Train a network of this shape, or return an earlier one of the same recipe."""
    torch.manual_seed(recipe["seed"])
    net = Headed(images.num_classes, images.shape, **shape)
    key = key_of({**shape, **recipe, "data": images.fingerprint, "training": TRAINING})
    return bench.train(net, images, bench.out / "trained" / f"headed-{key}", loss="mse", **recipe)


@torch.no_grad()
def entering(net: Headed, images: wgeo.Images) -> list[np.ndarray]:
    """Return the inputs of every weight matrix, (d, N) each, in float64."""
    net.eval()
    form = images.normalize or normalization(images.preset)
    parts = [
        net.features(x.to(next(net.parameters()).device)) for x, _ in images.batches(500, form)
    ]
    return [torch.cat(layer).double().cpu().numpy().T for layer in zip(*parts, strict=True)]


def weights_of(net: Headed) -> list[np.ndarray]:
    """Return W_1, ..., W_L in float64."""
    return [W.weight.detach().double().cpu().numpy() for W in net.weights]

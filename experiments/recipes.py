"""The networks that experiments share, so that each is trained once."""

from __future__ import annotations

from typing import Any

from lab import Bench

import wgeo

# How much of a data set a small run takes, and at what size.
SUBSETS: dict[str, dict[str, Any]] = {
    "digits": {"limit": None, "size": None},
    "mnist": {"limit": 1000, "size": 14},
    "cifar10": {"limit": 1000, "size": 16},
}
EPOCHS = (0, 1, 4, 16)


def isotropic(
    bench: Bench,
    data: str,
    *,
    arch: str = "isoresnet",
    weight_decay: float,
    seed: int,
    depth: int = 8,
    width: int = 32,
    epochs: int = 60,
    full: bool = False,
) -> wgeo.TrainingRun:
    """Train an isotropic network to the terminal phase: SGD, cosine schedule, peak rate 0.05."""
    subset = {"limit": None, "size": None} if full else SUBSETS[data]
    return bench.trained(
        arch,
        data,
        **subset,
        epochs=epochs,
        lr=0.05,
        weight_decay=weight_decay,
        options={"stride": 2, "width": width, "depth": depth},
        checkpoints=sorted({*EPOCHS, epochs}),
        evaluate_every=4,
        seed=seed,
    )


def images(bench: Bench, data: str, full: bool = False) -> wgeo.Images:
    """Return the images that `isotropic` trains on."""
    return bench.images(data, **({} if full else SUBSETS[data]))

"""The networks that experiments share, so that each is trained once."""

from __future__ import annotations

from typing import Any

from lab import Bench

import wgeo

# How much of a data set a small run takes, at what size, and for how long: past accuracy 1.
SMALL: dict[str, dict[str, Any]] = {
    "digits": {"limit": None, "size": None, "epochs": 40},
    "mnist": {"limit": 1000, "size": 14, "epochs": 20},
    "cifar10": {"limit": 1000, "size": 16, "epochs": 30},
}
FULL: dict[str, Any] = {"limit": None, "size": None, "epochs": 200}
EPOCHS = (0, 4, 16)


def isotropic(
    bench: Bench,
    data: str,
    *,
    arch: str = "isoresnet",
    weight_decay: float,
    seed: int,
    depth: int = 8,
    width: int = 32,
    full: bool = False,
) -> wgeo.TrainingRun:
    """Train an isotropic network to the terminal phase: SGD, cosine schedule, peak rate 0.05."""
    chosen = FULL if full else SMALL[data]
    return bench.trained(
        arch,
        data,
        **chosen,
        lr=0.05,
        weight_decay=weight_decay,
        options={"stride": 2, "width": width, "depth": depth},
        checkpoints=sorted({*EPOCHS, chosen["epochs"]}),
        evaluate_every=4,
        seed=seed,
    )


def images(bench: Bench, data: str, full: bool = False) -> wgeo.Images:
    """Return the images that `isotropic` trains on."""
    chosen = FULL if full else SMALL[data]
    return bench.images(data, chosen["limit"], size=chosen["size"])

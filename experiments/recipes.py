"""Recipes of the networks that several experiments use, so that each is trained once."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from lab import Bench, Cell

import wgeo

# The settings of a small run: its images (`limit`, `size`), the stride of the stem, and the number
# of epochs. Training goes on well beyond accuracy 1, until straightness changes less than it
# differs between seeds. `longer` gives other numbers of epochs for some weight decays. `decayed` is
# passed to `wgeo.train`: with decay on every weight, runs on natural images leave the terminal
# phase.
SMALL: dict[str, dict[str, Any]] = {
    "digits": {"limit": None, "size": None, "stride": 2, "epochs": 160},
    "mnist": {"limit": 1000, "size": 14, "stride": 2, "epochs": 160},
    "cifar10": {
        "limit": 2000,
        "size": None,
        "stride": 4,
        "epochs": 100,
        "longer": {2e-2: 200},
        "decayed": "unnormalized",
    },
}
# More images of the data set `of`, in a precision in which training on a CPU is fast enough.
SMALL["cifar10, 5000 images"] = {
    **SMALL["cifar10"],
    "of": "cifar10",
    "limit": 5000,
    "precision": "bfloat16",
}
FULL: dict[str, Any] = {"limit": None, "size": None, "epochs": 200, "longer": {}}
EPOCHS = (0, 1, 2, 4, 8, 16, 24, 32, 40, 60, 80, 100, 120, 140, 160, 180, 200)


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
    decayed: str | None = None,
) -> wgeo.TrainingRun:
    """Train an isotropic network to the terminal phase: SGD, cosine schedule, peak rate 0.05.

    `decayed` is passed to `wgeo.train`; None selects the setting of the data set.
    """
    chosen = _chosen(data, full)
    decayed = decayed or chosen.get("decayed", "all")
    epochs = epochs_of({"data": data, "full": full, "weight_decay": weight_decay})
    others = {"decayed": decayed} if decayed != "all" else {}
    if "precision" in chosen:
        others["precision"] = chosen["precision"]
    return bench.trained(
        arch,
        chosen.get("of", data),
        limit=chosen["limit"],
        size=chosen["size"],
        epochs=epochs,
        lr=0.05,
        weight_decay=weight_decay,
        options={"stride": chosen["stride"], "width": width, "depth": depth},
        checkpoints=sorted({*(epoch for epoch in EPOCHS if epoch < epochs), epochs}),
        evaluate_every=4,
        seed=seed,
        **others,
    )


def network(bench: Bench, cell: Cell) -> wgeo.TrainingRun:
    """Return the isotropic network of a cell, trained if it is not yet."""
    names = ("arch", "weight_decay", "decayed", "seed", "depth", "full")
    return isotropic(bench, cell["data"], **{name: cell[name] for name in names if name in cell})


def at_epochs(run: wgeo.TrainingRun, epochs: Collection[int]) -> Iterator[wgeo.Network]:
    """Load the checkpoints of these epochs and the last, in order."""
    for path in run.checkpoints:
        net = wgeo.load_checkpoint(path)
        if net.provenance.epoch in epochs or path == run.last:
            yield net


def epochs_of(cell: Cell) -> int:
    """Return the number of epochs for which `isotropic` trains the network of a cell."""
    chosen = _chosen(cell["data"], cell["full"])
    return chosen.get("longer", {}).get(cell["weight_decay"], chosen["epochs"])


def images(bench: Bench, data: str, full: bool = False, samples: int | None = None) -> wgeo.Images:
    """Return the images that `isotropic` trains on, or `samples` of them, balanced over classes."""
    chosen = _chosen(data, full)
    return bench.images(chosen.get("of", data), samples or chosen["limit"], size=chosen["size"])


def _chosen(data: str, full: bool) -> dict[str, Any]:
    return {**SMALL[data], **(FULL if full else {})}

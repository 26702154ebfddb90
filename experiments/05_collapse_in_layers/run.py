"""Do classes collapse layer by layer, in every kind of network? Claims P1 and I1 to I4.

    python experiments/05_collapse_in_layers/run.py --jobs 1 \\
        --data mnist=npz:mnist.npz --data cifar10=cifar10.zip
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from authors import in_their_units, inputs_of_layers
from claims import AUTHORS_CLAIMS, CLAIMS
from figure import AUTHORS_ROWS, ROWS, draw
from lab import Bench, Cell, Lab
from tables import (
    AUTHORS_TALLIES,
    agreement,
    authors_means,
    authors_variability,
    counts,
    over_seeds,
    simple_first,
    tallies,
    trained,
    untrained,
    views_of,
)
from torch import nn

import wgeo
from wgeo.neural_collapse import Collapse
from wgeo.neural_collapse.metrics import Frame

Result = dict[str, Any]

# --- measurements of one network ------------------------------------------------------------------

METRICS = (
    *("nc1", "nc1_quotient", "nc2_equinorm", "nc2_equiangle", "nc2_etf", "cdnv"),
    *("ncc_error", "mean_angle", "within"),
)


def measure(cell: Cell, bench: Bench) -> Result:
    """Train one network; measure training and test images at every layer."""
    run, fresh = trained_network(cell, bench)
    subset = subset_of(cell)
    images = bench.images(cell["data"], **subset)
    unseen = bench.images(cell["data"], split="test", **subset)
    views = {}
    for pool in cell["pools"]:
        traj = wgeo.trace(run.module, images, pool)
        found = wgeo.collapse(traj, bootstrap=cell["bootstrap"], seed=cell["seed"])
        views[pool] = {
            **summary(found),
            "uncentred_angle": uncentered_angles(traj),
            "start": summary(wgeo.collapse(wgeo.trace(fresh, images, pool)))["layers"],
            "test": summary(wgeo.collapse(wgeo.trace(run.module, unseen, pool))),
        }
    return {"accuracy": run.accuracy, "views": views}


def measure_as_authors(cell: Cell, bench: Bench) -> Result:
    """Train one network as the authors do, and compute their metrics before and after training."""
    run, fresh = trained_network(cell, bench)
    images = bench.images(cell["data"], **subset_of(cell))
    found, start = (
        summary(wgeo.collapse(inputs_of_layers(net, images), spectrum_size=0))
        for net in (run.module, fresh)
    )
    for view in (found, start):
        view["layers"] = in_their_units(view["layers"], images.num_classes)
    return {"accuracy": run.accuracy, "views": {"inputs": {**found, "start": start["layers"]}}}


def trained_network(cell: Cell, bench: Bench) -> tuple[wgeo.TrainingRun, nn.Module]:
    """Return the trained network of a cell, and the same network before training."""
    run = bench.trained(
        cell["arch"],
        cell["data"],
        **subset_of(cell),
        **{key: cell[key] for key in ("activation", "loss", "seed", "epochs", "lr", "options")},
        **{key: cell[key] for key in ("weight_decay", "batch_size", "schedule")},
        checkpoints=[0],
        evaluate_every=cell["epochs"],
    )
    return run, wgeo.load_checkpoint(run.checkpoints[0]).module


def subset_of(cell: Cell) -> dict[str, int | None]:
    """Return the number and the size of the images of a cell."""
    return {"limit": cell["limit"], "size": cell["size"]}


def summary(found: Collapse) -> Result:
    """Return the metrics at the stem and after every block, and the trend of each with depth."""
    layers = [layer for layer in found.layers if layer.stage is not None]
    names = [layer.name for layer in layers]
    reached = None if found.learned_at is None else names.index(found.learned_at)
    return {
        "names": names,
        "layers": {metric: [getattr(layer, metric) for layer in layers] for metric in METRICS},
        "progress": {metric: p.to_dict() for metric, p in found.progress.items()},
        "separation": found.separation.to_dict(),
        "accuracy": found.accuracy,
        "learned": None if reached is None else reached / (len(names) - 1),
    }


def uncentered_angles(traj: wgeo.Trajectory) -> list[float | None]:
    """Return the mean angle between uncentered class means, in degrees, by depth.

    Centered means are not used here: they sum to zero, so that their mean cosine is -1/(K - 1) if
    their norms are equal, and their mean angle can hardly grow.
    """
    classes = np.unique(traj.labels)
    return [
        Frame.of(
            np.array([layer.features[traj.labels == k].mean(0, dtype=float) for k in classes])
        ).mean_angle
        for layer in traj.staged
    ]


# --- cells ---------------------------------------------------------------------------------------


def cells_of(lab: Lab) -> list[Cell]:
    """Return every combination, with more seeds if the activation is ReLU and the loss CE."""
    cells = []
    lists = (lab.settings[name] for name in ("losses", "activations", "datasets", "archs"))
    for loss, activation, data, arch in itertools.product(*lists):
        recipe = {**recipe_of(lab, arch, data, loss), "bootstrap": lab.settings["bootstrap"]}
        usual = (activation, loss) == ("relu", "ce") and data in lab.settings["seeded"]
        for seed in lab.settings["seeds" if usual else "other_seeds"]:
            setting = {"arch": arch, "activation": activation, "loss": loss, "data": data}
            cells.append({**setting, "seed": seed, **recipe})
    return sorted(cells, key=lambda cell: cell["seed"])  # every setting once, then the other seeds


def authors_cells(lab: Lab) -> list[Cell]:
    """Return every architecture and data set, with ReLU and CE, in the authors' setting."""
    own = lab.settings["authors"]
    cells = []
    for seed, data, arch in itertools.product(
        own["seeds"], lab.settings["datasets"], lab.settings["archs"]
    ):
        recipe = {**recipe_of(lab, arch, data, "ce"), **own["recipe"], **own["arch"][arch]}
        del recipe["pools"]
        recipe["epochs"] = recipe["epochs"][data]
        setting = {"arch": arch, "activation": "relu", "loss": "ce", "data": data, "seed": seed}
        cells.append({**setting, **recipe})
    return cells


def recipe_of(lab: Lab, arch: str, data: str, loss: str) -> Cell:
    """Return the settings for training a network and for loading its images."""
    recipe = {
        "limit": None,
        "size": None,
        **lab.settings["recipe"],
        **lab.settings["arch"][arch],
        **lab.settings["data"][data],
    }
    recipe["epochs"] = dict(zip(("ce", "mse"), recipe["epochs"][data], strict=True))[loss]
    patch = recipe.pop("patch")
    if arch == "vit":
        recipe["options"] = {**recipe["options"], "patch": patch}
    return recipe


def main() -> None:
    """Measure every cell; write the tables and the figures."""
    lab = Lab(__file__)
    results = lab.measure(measure, cells_of(lab))
    views = views_of([result for result in results if trained(result)])
    for factor in ("seen", "data", "activation", "loss"):
        lab.write(f"what held, by {factor}", counts(views, factor, tallies(CLAIMS)))
    lab.write("simple data first", simple_first(views, lab.settings["datasets"]))
    lab.write("over seeds", over_seeds(views))
    lab.write("agreement of seeds", agreement(views, CLAIMS))
    lab.write("not trained", untrained(results))
    draw(views, lab.figure("metrics-over-depth.png"), ROWS)
    in_the_authors_setting(lab)


def in_the_authors_setting(lab: Lab) -> None:
    """Measure the networks trained as the authors do; write their tables and their figure."""
    results = lab.measure(measure_as_authors, authors_cells(lab))
    views = views_of([result for result in results if trained(result)])
    lab.write("authors' setting, what held", counts(views, "arch", AUTHORS_TALLIES))
    lab.write("authors' setting, agreement of seeds", agreement(views, AUTHORS_CLAIMS))
    lab.write("authors' setting, NC1", authors_variability(views))
    lab.write("authors' setting, class means", authors_means(views))
    lab.write("authors' setting, not trained", untrained(results))
    draw(views, lab.figure("authors-setting.png"), AUTHORS_ROWS)


if __name__ == "__main__":
    main()

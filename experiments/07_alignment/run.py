"""Do residual alignment and block coupling rise as the path straightens?

python experiments/07_alignment/run.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import recipes
from lab import Bench, Cell, Lab, by, spread, table

import wgeo
from wgeo.features.network import inputs
from wgeo.models.fresh import reestimate_statistics

SEGMENT = ("overlap_uv", "overlap_uu", "overlap_vv", "coupling")
LAW = ("rate", "correlation", "curvature", "discrimination_correlation")


def measure(cell: Cell, bench: Bench) -> dict[str, Any]:
    """Measure path, Jacobians and separation at the epochs ``cell["curve"]`` and the last."""
    images = recipes.images(bench, cell["data"], cell["full"])
    few = recipes.images(bench, cell["data"], cell["full"], cell["samples"])
    found = []
    for net in recipes.at_epochs(recipes.network(bench, cell), cell["curve"]):
        epoch = net.provenance.epoch
        if epoch == 0:  # estimate the batch statistics, which training has not yet set
            batches = np.array_split(np.arange(len(images)), max(1, len(images) // 128))
            reestimate_statistics(net.module, (inputs(net, images, rows) for rows in batches))
        found.append({"epoch": epoch, **measured(net, few, cell)})
    return {"epochs": found}


def measured(net: wgeo.Network, images: wgeo.Images, cell: Cell) -> dict[str, Any]:
    """Return the length ratio, the alignment and the law of one network."""
    with torch.no_grad():
        traj = wgeo.trace(net, images)
    (path,) = wgeo.straightness(traj, bootstrap=0).segments
    options = {"points": cell["points"], "vectors": cell["vectors"]}
    aligned = wgeo.alignment(net, images, **options)
    (segment,) = aligned.segments
    laws = wgeo.separation_law(traj, layers=[layer.name for layer in traj.staged[1:]])
    return {
        "length_ratio": path.centred["length_ratio"],
        "chance": segment.chance,
        **{name: getattr(segment, name) for name in SEGMENT},
        "slope_1": segment.slopes[0],
        "slope_k": segment.slopes[-1],
        "own": float(np.mean([block.overlap for block in aligned.blocks])),
        "asymmetry": float(np.mean([block.asymmetry for block in aligned.blocks])),
        **{name: getattr(laws.segments[0], name) for name in LAW},
        "residual": max(block.residual for block in aligned.blocks),
    }


ALIGNMENT = {
    "length_ratio": "length ratio",
    "overlap_uv": "overlap uv",
    "overlap_uu": "uu",
    "overlap_vv": "vv",
    "coupling": "coupling",
    "slope_1": "slope, k = 1",
    "slope_k": "slope, k = K",
    "asymmetry": "asymmetry",
}
SEPARATION = {
    "rate": "factor per block",
    "correlation": "r",
    "curvature": "curvature",
    "discrimination_correlation": "r of discrimination",
}


def main() -> None:
    lab = Lab(__file__)
    fixed = {key: lab.settings[key] for key in ("points", "vectors", "samples", "curve")}
    cells = lab.grid("data", "arch", "weight_decay", "seed", full=lab.arguments.full, **fixed)
    groups = by(lab.measure(measure, cells), "data", "arch", "weight_decay")
    for name, columns in (("alignment", ALIGNMENT), ("separation", SEPARATION)):
        rows = []
        for (data, arch, decay), group in groups.items():
            for k in range(len(group[0]["epochs"])):
                at = [result["epochs"][k] for result in group]
                # Before training, the networks of all decays are the same.
                if at[0]["epoch"] == 0 and decay != lab.settings["weight_decay"][0]:
                    continue
                rows.append(
                    [
                        data,
                        "residual" if arch == "isoresnet" else "plain",
                        "any" if at[0]["epoch"] == 0 else f"{decay:g}",
                        at[0]["epoch"],
                        len(at),
                        *(spread([row[column] for row in at]) for column in columns),
                    ]
                )
        head = ["data", "network", "weight decay", "epoch", "seeds", *columns.values()]
        lab.write(name, table(head, rows))


if __name__ == "__main__":
    main()

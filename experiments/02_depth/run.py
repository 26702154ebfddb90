"""Is a deeper residual network straighter?

python experiments/02_depth/run.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import recipes
from lab import Bench, Cell, Lab, by, mean_interval, spread, table

import wgeo

FIGURES = ("length_ratio", "line_shape_ratio", "turning_angle", "speed_deviation", "ot_score")


def measure(cell: Cell, bench: Bench) -> dict[str, Any]:
    """Train one network of a depth and measure it on the images it was trained on."""
    run = recipes.isotropic(
        bench,
        cell["data"],
        weight_decay=cell["weight_decay"],
        seed=cell["seed"],
        depth=cell["depth"],
        full=cell["full"],
    )
    images = recipes.images(bench, cell["data"], cell["full"])
    traj = wgeo.trace(run.module, images)
    straight = wgeo.straightness(traj, bootstrap=0)
    segment = straight.segments[0]
    collapsed = wgeo.collapse(traj)
    return {
        "accuracy": traj.accuracy,
        **{name: getattr(segment, name) for name in FIGURES},
        "gap": max(segment.interpolation_gap),
        "step": float(np.mean([block.distance for block in straight.blocks])) / segment.distance,
        "violations": collapsed.progress["nc1"].violations,
        "tau": collapsed.progress["nc1"].kendall_tau,
    }


def main() -> None:
    lab = Lab(__file__)
    fixed = {"weight_decay": lab.settings["weight_decay"]}
    results = lab.measure(measure, lab.grid("data", "depth", "seed", full=lab.asked.full, **fixed))
    shown = ("accuracy", *FIGURES, "gap", "step", "tau", "violations")
    names = {
        "gap": "largest interpolation gap",
        "step": "mean step / end to end",
        "tau": "τ of NC1",
    }
    head = ["data", "blocks", *(names.get(key, key.replace("_", " ")) for key in shown)]
    groups = by(results, "data", "depth")
    rows = [
        [*key, *(spread([r[f] for r in group]) for f in shown)] for key, group in groups.items()
    ]
    lab.write("depth", table(head, rows))
    draw(groups, lab)


def draw(groups: dict[tuple, list[dict[str, Any]]], lab: Lab) -> None:
    """Straightness over depth."""
    figure = Figure(figsize=(7.2, 2.6), layout="constrained", dpi=160)
    panels = (("length_ratio", "W2 length ratio"), ("turning_angle", "turning angle (degrees)"))
    for ax, (name, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for k, data in enumerate(dict.fromkeys(key[0] for key in groups)):
            depths = [key[1] for key in groups if key[0] == data]
            ends = np.array(
                [mean_interval([r[name] for r in groups[data, depth]]) for depth in depths]
            )
            bars = np.maximum(abs(ends[:, 1:] - ends[:, :1]).T, 0)
            colour, marker = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^")][k]
            ax.errorbar(
                depths,
                ends[:, 0],
                yerr=bars,
                color=colour,
                marker=marker,
                ms=4,
                capsize=2,
                label=data,
            )
        ax.set_xscale("log", base=2)
        ax.set_xticks(depths, [str(d) for d in depths])
        ax.set_xlabel("residual blocks")
        ax.set_ylabel(label)
        ax.legend(frameon=False, fontsize=8)
    figure.savefig(lab.figure("depth.png"))


if __name__ == "__main__":
    main()

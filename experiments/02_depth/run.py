"""Is a deeper residual network straighter, at equal numbers of groups of blocks?

python experiments/02_depth/run.py --data mnist=npz:mnist.npz
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import recipes
import terminal
from lab import Bench, Cell, Lab, by, mean_interval, spread, table
from terminal import optimality

import wgeo

RUNS = (2, 4, 8, 16, 32)
PATH = ("length_ratio", "sqrt_moving_blocks", "action_ratio", "turning_angle")


def measure(cell: Cell, bench: Bench) -> dict[str, Any]:
    """Measure a network's straightness at its last epoch, and its length over groups of blocks."""
    run = recipes.network(bench, cell)
    images = recipes.images(bench, cell["data"], cell["full"], cell["samples"])
    traj = wgeo.trace(run.module, images)
    straight = wgeo.straightness(traj, bootstrap=0, pairs=True, nulls=0)
    segment = straight.segments[0]
    steps = [block.distance / segment.distance for block in straight.blocks]
    return {
        "accuracy": run.accuracy,
        "terminal_epoch": run.terminal_epoch,
        **{name: getattr(segment, name) for name in PATH},
        "runs": dict(segment.length_over_runs),
        "centred": dict(segment.centred["length_over_runs"]),
        "mean_step": float(np.mean(steps)),
        "least_step": min(steps),
        "nc1": wgeo.collapse(traj).layers[-1].nc1,
    }


def main() -> None:
    lab = Lab(__file__)
    fixed = {
        "full": lab.arguments.full,
        "samples": lab.settings["samples"],
        "arch": "isoresnet",
        "decayed": "all",
    }
    networks = lab.grid("data", "depth", "weight_decay", "seed", **fixed)
    results = lab.measure(measure, networks)
    look = {"pool": "grid:2", "epoch": None, "samples": lab.settings["samples_of_pairs"]}
    groups = by(results, "data", "depth")
    lab.write("runs", at_equal_runs(groups))
    draw(groups).savefig(lab.figure("depth.png"))
    matrices = lab.measure(optimality, [{**cell, **look} for cell in networks])
    lab.write("depth", all_layers(groups, by(matrices, "data", "depth")))


def at_equal_runs(groups: dict[tuple, list[dict[str, Any]]]) -> str:
    """Tabulate, by depth, the length over k groups of blocks relative to that of the geodesic."""
    known = sorted({int(k) for group in groups.values() for k in group[0]["runs"]})
    rows = []
    for key, group in groups.items():
        cells = [
            _over(group, "runs", k) + (f" ({_over(group, 'centred', k)})" if k in RUNS else "")
            if str(k) in group[0]["runs"]
            else ""
            for k in known
        ]
        rows.append([*key, len(group), *cells])
    return table(["data", "blocks", "seeds", *(f"in {k} runs (centred)" for k in known)], rows)


def _over(group: Sequence[dict[str, Any]], twin: str, runs: int) -> str:
    return spread([result[twin].get(str(runs)) for result in group])


def all_layers(
    groups: dict[tuple, list[dict[str, Any]]], matrices: dict[tuple, list[dict[str, Any]]]
) -> str:
    """Tabulate measures over all layers, compared with orthogonal steps."""
    names = {
        "length_ratio": "length ratio",
        "sqrt_moving_blocks": "√B",
        "action_ratio": "action ratio",
        "turning_angle": "turning angle",
        "mean_step": "mean step / end to end",
        "least_step": "least step",
        "nc1": "NC1",
    }
    rows = []
    for key, group in groups.items():
        first = ", ".join(terminal.optimal_from(r) for r in matrices.get(key, []))
        accuracy = min(result["accuracy"] for result in group)
        cells = [spread([result[name] for result in group]) for name in names]
        rows.append([*key, len(group), f"{accuracy:.3f}", *cells, first])
    head = ["data", "blocks", "seeds", "accuracy", *names.values(), "nearly optimal from layer"]
    return table(head, rows)


def draw(groups: dict[tuple, list[dict[str, Any]]]) -> Figure:
    """Draw the length ratio at equal numbers of groups of blocks, as a function of depth."""
    data = list(dict.fromkeys(key[0] for key in groups))
    figure = Figure(figsize=(7.2, 2.6), layout="constrained", dpi=160)
    looks = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D")]
    for ax, name in zip(np.atleast_1d(figure.subplots(1, len(data))), data, strict=True):
        depths = [key[1] for key in groups if key[0] == name]
        for k, (colour, marker) in zip(RUNS, looks, strict=False):
            known = [d for d in depths if str(k) in groups[name, d][0]["runs"]]
            ends = np.array(
                [mean_interval([r["runs"][str(k)] for r in groups[name, d]]) for d in known]
            ).reshape(-1, 3)
            bars = np.nan_to_num(np.maximum(abs(ends[:, 1:] - ends[:, :1]).T, 0))
            drawn = {"color": colour, "marker": marker, "ms": 4, "capsize": 2}
            ax.errorbar(known, ends[:, 0], yerr=bars, label=f"{k} runs", **drawn)
        ax.axhline(1, color="#666666", lw=0.8, ls="--")
        ax.set_xscale("log", base=2)
        ax.set_xticks(depths, [str(d) for d in depths])
        ax.set_title(name, loc="left")
        ax.set_xlabel("residual blocks")
        ax.set_ylabel("length ratio over k runs")
        ax.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    main()

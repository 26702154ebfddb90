"""Does weight decay, or the shortcut, make a network follow a Wasserstein geodesic?

python experiments/01_weight_decay/run.py --data mnist=npz:mnist.npz
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

FIGURES = ("length_ratio", "line_shape_ratio", "line_shape_score", "action_ratio", "ot_score")
LOOK = {0.0: ("#E69F00", "o"), 5e-4: ("#0072B2", "s"), 5e-3: ("#222222", "^")}


def measure(cell: Cell, bench: Bench) -> dict[str, Any]:
    """Train one network; measure every checkpoint on the images it was trained on."""
    full = cell["full"]
    run = recipes.isotropic(
        bench,
        cell["data"],
        arch=cell["arch"],
        weight_decay=cell["weight_decay"],
        seed=cell["seed"],
        full=full,
    )
    images = recipes.images(bench, cell["data"], full)
    rows = []
    for path in run.checkpoints:
        net = wgeo.load_checkpoint(path)
        traj = wgeo.trace(net, images)
        segment = wgeo.straightness(traj, bootstrap=0).segments[0]
        collapsed = wgeo.collapse(traj)
        rows.append(
            {
                "epoch": net.provenance.epoch,
                "accuracy": traj.accuracy,
                **{name: getattr(segment, name) for name in (*FIGURES, "resolution")},
                "gap": max(segment.interpolation_gap),
                "nc1": collapsed.layers[-1].nc1,
                "tau": collapsed.progress["nc1"].kendall_tau,
                "violations": collapsed.progress["nc1"].violations,
            }
        )
    return {"epochs": rows, "terminal_epoch": run.terminal_epoch}


def main() -> None:
    lab = Lab(__file__)
    cells = lab.grid("data", "arch", "weight_decay", "seed", full=lab.asked.full)
    results = lab.measure(measure, cells)
    head = ["data", "network", "weight decay", "accuracy", *(f.replace("_", " ") for f in FIGURES)]
    rows = []
    for (data, arch, decay), group in by(results, "data", "arch", "weight_decay").items():
        last = [result["epochs"][-1] for result in group]
        rows.append(
            [
                data,
                "residual" if arch == "isoresnet" else "plain",
                f"{decay:g}",
                spread([row["accuracy"] for row in last], ".3f"),
                *(spread([row[name] for row in last]) for name in FIGURES),
            ]
        )
    lab.write("last epoch", table(head, rows))
    lab.write("effects", effects(results))
    lab.write("training", over_training(results))
    draw(results, lab)


def effects(results: list[dict[str, Any]]) -> str:
    """Paired by seed: what decay and what the shortcut change of straightness, at the end."""
    value = {
        tuple(r["cell"][k] for k in ("data", "arch", "weight_decay", "seed")): r["epochs"][-1]
        for r in results
    }
    seeds = sorted({key[3] for key in value})
    decays = sorted({key[2] for key in value})
    rows = []
    for data in dict.fromkeys(key[0] for key in value):
        pairs = [
            ("plain - residual", ("isoplain", d), ("isoresnet", d), f"decay {d:g}") for d in decays
        ]
        for arch, word in (("isoresnet", "residual"), ("isoplain", "plain")):
            pairs += [
                (f"decay {low:g} - decay {high:g}", (arch, low), (arch, high), word)
                for low, high in ((decays[0], decays[1]), (decays[0], decays[-1]))
            ]
        for name, a, b, where in pairs:
            cells = []
            for figure in ("line_shape_ratio", "length_ratio"):
                gaps = [value[data, *a, s][figure] - value[data, *b, s][figure] for s in seeds]
                _, low, high = mean_interval(gaps)
                held = "yes" if low > 0 else "no" if high < 0 else "not shown"
                cells += [spread(gaps), held]
            rows.append([data, name, where, *cells])
    head = ["data", "difference", "at", "line-shape ratio", "straighter?", "W2 length ratio"]
    return table([*head, "straighter?"], rows)


def over_training(results: list[dict[str, Any]]) -> str:
    """The W2 length ratio over the epochs."""
    epochs = [*(row["epoch"] for row in results[0]["epochs"][:-1]), "last"]
    rows = []
    for (data, arch, decay), group in by(results, "data", "arch", "weight_decay").items():
        rows.append(
            [
                data,
                "residual" if arch == "isoresnet" else "plain",
                f"{decay:g}",
                *(
                    spread([r["epochs"][k]["length_ratio"] for r in group])
                    for k in range(len(epochs))
                ),
            ]
        )
    return table(["data", "network", "weight decay", *(f"epoch {e}" for e in epochs)], rows)


def draw(results: list[dict[str, Any]], lab: Lab) -> None:
    """Straightness over training, residual and plain, a line a decay."""
    data = list(dict.fromkeys(result["cell"]["data"] for result in results))
    figure = Figure(figsize=(7.2, 2.7 * len(data)), layout="constrained", dpi=160)
    axes = figure.subplots(len(data), 2, squeeze=False)
    for (name, arch, decay), group in by(results, "data", "arch", "weight_decay").items():
        ax = axes[data.index(name), int(arch == "isoplain")]
        epochs = np.array([row["epoch"] for row in group[0]["epochs"]])
        means = np.array(
            [
                mean_interval([r["epochs"][k]["line_shape_ratio"] for r in group])
                for k in range(len(epochs))
            ]
        )
        colour, marker = LOOK.get(decay, ("#666666", "D"))
        ax.errorbar(
            epochs,
            means[:, 0],
            yerr=np.maximum(abs(means[:, 1:] - means[:, :1]).T, 0),
            color=colour,
            marker=marker,
            ms=4,
            lw=1.2,
            capsize=2,
            label=f"decay {decay:g}",
        )
        ax.set_xscale("symlog", base=2, linthresh=1)
        shown = [e for e in epochs if e == epochs[-1] or 1.5 * e < epochs[-1]]
        ax.set_xticks(shown, [str(e) for e in shown])
        ax.set_yscale("log")
        ax.set_yticks([1, 1.5, 2, 3, 5, 10], ["1", "1.5", "2", "3", "5", "10"])
        ax.minorticks_off()
        ax.axhline(1, color="#666666", lw=0.8, ls="--")
        ax.set_title(f"{name}, {'plain' if arch == 'isoplain' else 'residual'}", loc="left")
        ax.set_xlabel("epoch")
        ax.set_ylabel("line-shape ratio")
    axes[0, 0].legend(frameon=False, fontsize=8)
    for row in axes:
        low = min(ax.get_ylim()[0] for ax in row)
        high = max(ax.get_ylim()[1] for ax in row)
        for ax in row:
            ax.set_ylim(low, high)
    figure.savefig(lab.figure("training.png"))


if __name__ == "__main__":
    main()

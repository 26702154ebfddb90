"""Are trained blocks gradients of convex functions, as optimal maps are?

python experiments/04_gradient_maps/run.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import recipes
from lab import Bench, Cell, Lab, by, mean_interval, spread, table

import wgeo
from wgeo.features.network import inputs
from wgeo.features.residual_blocks import BlockSpec
from wgeo.geodesic.branches import visits
from wgeo.geodesic.gradient_maps import brenier_blocks

FIGURES = ("asymmetry", "displacement_asymmetry", "min_eigenvalue", "negative_share")
LOOK = {0.0: ("#E69F00", "o"), 5e-4: ("#0072B2", "s"), 5e-3: ("#222222", "^")}


def measure(cell: Cell, bench: Bench) -> dict[str, Any]:
    """Test every block at the epochs ``cell["curve"]`` and the last, on full spatial features."""
    images = recipes.images(bench, cell["data"], cell["full"])
    rows = np.linspace(0, len(images) - 1, cell["points"]).astype(int)
    found = []
    for net in recipes.at_epochs(recipes.network(bench, cell), cell["curve"]):
        names = wgeo.blocks(net, images)
        tested = brenier_blocks(net.module, inputs(net, images, rows), names, bootstrap=0)
        (whole,) = tested.segments.values()
        figures = {
            name: [getattr(result, name) for result in tested.blocks.values()] for name in FIGURES
        }
        found.append(
            {
                "epoch": net.provenance.epoch,
                **{name: float(np.mean(values)) for name, values in figures.items()},
                "blocks": figures,
                "whole": {name: getattr(whole, name) for name in FIGURES},
            }
        )
    return {"epochs": found}


def exact(cell: Cell, bench: Bench) -> dict[str, Any]:
    """Compute the Jacobian D = J - I of every block's displacement; return the values of `parts`.

    The values are means over blocks and images.
    """
    images = recipes.images(bench, cell["data"], cell["full"])
    rows = np.linspace(0, len(images) - 1, cell["samples"]).astype(int)
    tested = np.linspace(0, len(rows) - 1, cell["points"]).astype(int)
    draws = torch.Generator().manual_seed(cell["seed"])
    found = []
    for net in recipes.at_epochs(
        recipes.network(bench, cell), {cell["curve"][0], cell["curve"][-1]}
    ):
        specs = [BlockSpec(name, False, None) for name in wgeo.blocks(net, images)]
        calls, _ = visits(net.module, inputs(net, images, rows), specs)
        blocks = []
        for visit in calls:
            x = visit.x.double()
            centered = x.flatten(1) - x.flatten(1).mean(0)
            directions = torch.linalg.svd(centered, full_matrices=False).Vh[: cell["directions"]]
            random = torch.linalg.qr(torch.randn(directions.T.shape, generator=draws).double()).Q.T
            for jacobian in jacobians(visit.in_float64(), x[torch.from_numpy(tested)]):
                blocks.append(parts(jacobian, directions, random))
        means = np.mean([list(block.values()) for block in blocks], axis=0).tolist()
        found.append({"epoch": net.provenance.epoch, **dict(zip(blocks[0], means, strict=True))})
    return {"epochs": found}


def jacobians(block: Any, x: torch.Tensor) -> torch.Tensor:
    """Return the Jacobian of a block at every point, (n, d, d)."""
    basis = torch.eye(x[0].numel(), dtype=x.dtype).reshape(-1, 1, *x.shape[1:])
    columns = torch.func.vmap(
        lambda v: torch.func.jvp(block, (x,), (v.expand_as(x),))[1], chunk_size=64
    )(basis)
    return columns.flatten(2).permute(1, 2, 0)


def parts(
    jacobian: torch.Tensor, principal: torch.Tensor, random: torch.Tensor
) -> dict[str, float]:
    """Return the asymmetry of D = J - I in all and in some directions, with and without its trace.

    The multiple of I nearest to the d x d matrix D is tr(D) / d I, with the squared norm
    tr(D)^2 / d. It is symmetric and so lowers the asymmetry, but it only shrinks or expands all
    features alike. `principal` and `random` are k orthonormal rows V; in these directions, D is
    V D V^T. For a k x k matrix of independent normal entries, the mean asymmetry is
    (k^2 - k) / (k^2 + k - 4), and (k^2 - k) / (k^2 + k - 6) without the multiple of I.
    """
    displacement = jacobian - torch.eye(len(jacobian), dtype=jacobian.dtype)
    inside = {"principal": principal, "random": random}
    views = {name: rows @ displacement @ rows.T for name, rows in inside.items()}
    found = {}
    for name, matrix in {"all": displacement, **views}.items():
        anti = ((matrix - matrix.T) / 2).square().sum().item()
        symmetric = ((matrix + matrix.T) / 2).square().sum().item()
        multiple = matrix.trace().item() ** 2 / len(matrix)
        found[f"{name} asymmetry"] = anti / symmetric
        found[f"{name} share"] = multiple / (anti + symmetric)
        found[f"{name} rest"] = anti / (symmetric - multiple)
    return found


def exact_table(results: list[dict[str, Any]]) -> str:
    """Tabulate the means of `exact`."""
    views = {"all": "all directions", "principal": "principal", "random": "random"}
    rows = []
    for (data, decay), group in by(results, "data", "weight_decay").items():
        for k, first in enumerate(group[0]["epochs"]):
            at = [result["epochs"][k] for result in group]
            for view, label in views.items():
                names = [f"{view} {name}" for name in ("asymmetry", "share", "rest")]
                values = [spread([row[name] for row in at]) for name in names]
                rows.append([data, f"{decay:g}", first["epoch"], label, *values])
    head = [
        "data",
        "weight decay",
        "epoch",
        "directions",
        "asymmetry",
        "share of the multiple of I",
    ]
    return table([*head, "asymmetry without it"], rows)


def main() -> None:
    lab = Lab(__file__)
    fixed = {key: lab.settings[key] for key in ("points", "curve")}
    grid = lab.grid("data", "arch", "weight_decay", "seed", full=lab.arguments.full, **fixed)
    results = lab.measure(measure, grid)
    groups = by(results, "data", "arch", "weight_decay")
    for name, chosen in (("blocks", lambda row: row), ("whole", lambda row: row["whole"])):
        rows = []
        for (data, arch, decay), group in groups.items():
            for k in (0, *range(len(group[0]["epochs"]))[-2:]):
                at = [chosen(result["epochs"][k]) for result in group]
                rows.append(
                    [
                        data,
                        "residual" if arch == "isoresnet" else "plain",
                        f"{decay:g}",
                        group[0]["epochs"][k]["epoch"],
                        *(spread([row[f] for row in at]) for f in FIGURES),
                    ]
                )
        head = ["data", "network", "weight decay", "epoch", "asymmetry", "of the displacement"]
        lab.write(name, table([*head, "smallest eigenvalue", "share of points below 0"], rows))
    draw(groups, lab)
    residual = [cell for cell in grid if cell["arch"] == "isoresnet"]
    more = {key: lab.settings[key] for key in ("samples", "directions")}
    lab.write("exact", exact_table(lab.measure(exact, [{**cell, **more} for cell in residual])))


PANELS = (
    ("isoresnet", "asymmetry", "residual: the block"),
    ("isoresnet", "displacement_asymmetry", "residual: what it adds"),
    ("isoplain", "asymmetry", "plain: the block"),
)


def draw(groups: dict[tuple, list[dict[str, Any]]], lab: Lab) -> None:
    """Draw the asymmetry over training: residual blocks, their displacements, plain blocks."""
    data = list(dict.fromkeys(key[0] for key in groups))
    figure = Figure(figsize=(7.2, 2.5 * len(data)), layout="constrained", dpi=160)
    axes = figure.subplots(len(data), 3, squeeze=False, sharey=True)
    for row, name in zip(axes, data, strict=True):
        for ax, (arch, key, title) in zip(row, PANELS, strict=True):
            for decay in LOOK:
                group = groups.get((name, arch, decay), [])
                if group:
                    line(ax, group, key, decay)
            ax.axhline(1, color="#666666", lw=0.8, ls="--")
            ax.set_title(f"{name}, {title}", loc="left", fontsize=8.5)
            ax.set_xlabel("epoch")
            ax.set_ylim(0, 1.1)
        row[0].set_ylabel("asymmetry (1: random, 0: gradient)", fontsize=8)
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(lab.figure("asymmetry.png"))


def line(ax: Any, group: list[dict[str, Any]], key: str, decay: float) -> None:
    """Draw the mean and its interval at every epoch, for one decay."""
    epochs = [row["epoch"] for row in group[0]["epochs"]]
    ends = np.array(
        [mean_interval([r["epochs"][k][key] for r in group]) for k in range(len(epochs))]
    )
    colour, marker = LOOK[decay]
    look = {"color": colour, "marker": marker, "ms": 4, "lw": 1.2, "capsize": 2}
    bars = np.maximum(abs(ends[:, 1:] - ends[:, :1]).T, 0)
    ax.errorbar(epochs, ends[:, 0], yerr=bars, label=f"decay {decay:g}", **look)
    ax.set_xscale("symlog", base=2, linthresh=1)
    ax.set_xticks(epochs, [str(epoch) for epoch in epochs])
    ax.minorticks_off()


if __name__ == "__main__":
    main()

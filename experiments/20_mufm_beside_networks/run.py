"""How much of a trained residual network do the geodesic model and MUFM explain?

python experiments/20_mufm_beside_networks/run.py --data mnist=npz:mnist.npz
    --data cifar10=cifar10.zip
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import recipes
from lab import Bench, Cell, Lab, by, rank_correlation_within, spread, table

import wgeo

LOOKS = {
    "network": ("#222222", "-", "network"),
    "geodesic model": ("#0072B2", "--", "line"),
    "MUFM": ("#D55E00", "--", "MUFM"),
    "given": ("#009E73", ":", "MUFM, own classifier"),
}
MARKERS = {"digits": "o", "mnist": "s", "cifar10": "^"}


def measure(cell: Cell, bench: Bench) -> dict[str, Any]:
    """Train one network, or load it if it exists, and compare it with the models."""
    full = cell["full"]
    run = recipes.isotropic(
        bench,
        cell["data"],
        weight_decay=cell["weight_decay"],
        seed=cell["seed"],
        full=full,
    )
    net = wgeo.load_checkpoint(run.checkpoints[-1])
    traj = wgeo.trace(net, recipes.images(bench, cell["data"], full))
    straight = wgeo.straightness(traj, bootstrap=0).segments[-1]
    found = wgeo.compare(traj)
    even = wgeo.compare(traj, mufm=False, time="uniform")
    curves = {
        "network": [layer.nc1 for layer in found.network],
        "geodesic model": [layer.collapse.nc1 for layer in found.geodesic],
        "uniform": [layer.collapse.nc1 for layer in even.geodesic],
        "MUFM": [layer.collapse.nc1 for layer in found.mufm],
        "given": [layer.collapse.nc1 for layer in found.given],
    }
    errors = {
        name: {
            key: [getattr(layer, key) for layer in layers]
            for key in ("missed", "r2", "r2_means", "w2", "time", "gain")
        }
        for name, layers in (
            ("geodesic model", found.geodesic),
            ("uniform", even.geodesic),
            ("MUFM", found.mufm),
            ("given", found.given),
            ("UFM", found.ufm),
        )
    }
    return {
        "accuracy": traj.accuracy,
        "nc1": curves,
        "errors": errors,
        "etf": {
            "network": found.network[-1].nc2_etf,
            "MUFM": found.mufm[-1].collapse.nc2_etf,
        },
        "held_out": {
            "MUFM": [found.held_out.r2, found.held_out.r2_means],
            "given": [found.held_out_given.r2, found.held_out_given.r2_means],
        },
        "settings": found.solution.settings,
        "verdict": found.solution.certificate.verdict,
        "line_shape_ratio": straight.line_shape_ratio,
        "length_ratio": straight.length_ratio,
        "ot_score": straight.ot_score,
    }


def inner_unexplained(result: dict[str, Any], model: str) -> float:
    """Return the unexplained variance of a model, as a mean over the inner layers."""
    return float(np.mean(result["errors"][model]["missed"][1:-1]))


def nc1(result: dict[str, Any], name: str) -> np.ndarray:
    """Return NC1 at every layer, NaN if undefined."""
    return np.array(result["nc1"][name], dtype=float)


def curve_error(result: dict[str, Any], model: str) -> float:
    """Return the mean over inner layers of |log10 NC1 predicted - log10 NC1 measured|."""
    said, seen = (np.log10(nc1(result, name)[1:-1]) for name in (model, "network"))
    return float(np.nanmean(np.abs(said - seen)))


def main() -> None:
    lab = Lab(__file__)
    cells = lab.grid("data", "weight_decay", "seed", full=lab.arguments.full)
    results = lab.measure(measure, cells)
    lab.write("last layer", last_layer(results))
    lab.write("curves", curves(results))
    lab.write("features", features(results))
    lab.write("answers", answers(results))
    draw_curves(results, lab)
    draw_straightness(results, lab)


def grouped(results: list[dict[str, Any]]) -> list[tuple[list[str], list[dict[str, Any]]]]:
    return [
        ([data, f"{decay:g}"], group)
        for (data, decay), group in by(results, "data", "weight_decay").items()
    ]


def last_layer(results: list[dict[str, Any]]) -> str:
    """Tabulate NC1 of the first and the last layer, measured and predicted by MUFM."""
    head = ["data", "weight decay", "accuracy", "NC1 input", "NC1 last", "MUFM's NC1 last"]
    head += ["with own classifier"]
    rows = [
        [
            *names,
            spread([r["accuracy"] for r in group], ".3f"),
            spread([r["nc1"]["network"][0] for r in group]),
            spread([r["nc1"]["network"][-1] for r in group]),
            *(spread([r["nc1"][model][-1] for r in group]) for model in ("MUFM", "given")),
            f"{sum(nearer(r) for r in group)} of {len(group)}",
            f"{sum(r['verdict'] == 'global' for r in group)} of {len(group)}",
        ]
        for names, group in grouped(results)
    ]
    return table([*head, "nearer than NC's zero", "certified global"], rows)


def nearer(result: dict[str, Any]) -> bool:
    """Whether MUFM's NC1 of the last layer is nearer to the network's than complete collapse."""
    measured, predicted = nc1(result, "network")[-1], nc1(result, "MUFM")[-1]
    return bool(abs(predicted - measured) < measured)


def curves(results: list[dict[str, Any]]) -> str:
    """Tabulate the distance of each model's NC1 from the network's at the inner layers."""
    head = [
        "data",
        "weight decay",
        "Kendall's tau of NC1",
        "geodesic",
        "at uniform time",
        "MUFM",
        "with own classifier",
    ]
    rows = []
    for names, group in grouped(results):
        taus = [
            stats.kendalltau(nc1(r, "network"), range(len(r["nc1"]["network"])))[0] for r in group
        ]
        models = ("geodesic model", "uniform", "MUFM", "given")
        errors = [spread([curve_error(r, model) for r in group]) for model in models]
        rows.append([*names, spread(taus), *errors])
    return table(head, rows)


def features(results: list[dict[str, Any]]) -> str:
    """Tabulate the share of variance that models leave unexplained, and R² on held-out samples."""
    head = [
        "data",
        "weight decay",
        "unexplained: line",
        "unexplained: MUFM",
        "unexplained: MUFM with own classifier",
    ]
    head += ["MUFM: R² held out", "of class means", "own classifier: R² held out", "of class means"]
    head += ["unexplained in the last layer: MUFM", "unexplained in the last layer: UFM"]
    rows = [
        [
            *names,
            *(
                spread([inner_unexplained(r, model) for r in group])
                for model in ("geodesic model", "MUFM", "given")
            ),
            *(
                spread([r["held_out"][model][k] for r in group])
                for model in ("MUFM", "given")
                for k in (0, 1)
            ),
            *(
                spread([r["errors"][model]["missed"][-1] for r in group])
                for model in ("MUFM", "UFM")
            ),
        ]
        for names, group in grouped(results)
    ]
    return table(head, rows)


def answers(results: list[dict[str, Any]]) -> str:
    """Tabulate the answers to the questions, counted over all networks."""
    total = len(results)
    between = sum(0 < nc1(r, "MUFM")[-1] < nc1(r, "network")[0] for r in results)
    falls = sum(bool(np.all(np.diff(nc1(r, "MUFM")) <= 0)) for r in results)
    measured = sum(bool(np.all(np.diff(nc1(r, "network")) < 0)) for r in results)
    rows = [
        ["P1: the network's NC1 falls at every layer", f"{measured} of {total}"],
        [
            "P4: MUFM's last layer is more concentrated than the input, not collapsed",
            f"{between} of {total}",
        ],
        ["MUFM's NC1 rises at no layer", f"{falls} of {total}"],
        [
            "MUFM's NC1 of the last layer is nearer to the network's than zero is",
            f"{sum(map(nearer, results))} of {total}",
        ],
    ]
    for name, words in (
        ("line_shape_ratio", "line-shape ratio"),
        ("length_ratio", "W2 length ratio"),
    ):
        x = [r[name] for r in results]
        y = [inner_unexplained(r, "geodesic model") for r in results]
        cells = [(r["cell"]["data"], r["cell"]["weight_decay"]) for r in results]
        within, p = rank_correlation_within(x, y, cells)
        question = f"P3: rank correlation of {words} and the line's unexplained variance"
        rows += [
            [f"{question}, over all networks (no test: data sets differ in both)",
             f"{stats.spearmanr(x, y).statistic:+.2f}"],
            [f"{question}, within data sets and weight decays",
             f"{within:+.2f} (p = {p:.2g}, seeds permuted)"],
        ]  # fmt: skip
    return table(["question", "answer"], rows)


def draw_curves(results: list[dict[str, Any]], lab: Lab) -> None:
    """Draw NC1 over depth, of networks and models, one panel per data set and decay."""
    names = list(dict.fromkeys(r["cell"]["data"] for r in results))
    decays = list(dict.fromkeys(r["cell"]["weight_decay"] for r in results))
    figure = Figure(figsize=(2.6 * len(decays), 2.2 * len(names)), layout="constrained", dpi=160)
    axes = figure.subplots(len(names), len(decays), squeeze=False, sharex=True, sharey="row")
    for r in results:
        ax = axes[names.index(r["cell"]["data"]), decays.index(r["cell"]["weight_decay"])]
        for model, (colour, style, words) in LOOKS.items():
            curve = nc1(r, model)
            label = words if r["cell"]["seed"] == results[0]["cell"]["seed"] else None
            ax.plot(range(len(curve)), curve, style, color=colour, lw=1.1, label=label)
        ax.set_yscale("log")
        ax.set_title(f"{r['cell']['data']}, decay {r['cell']['weight_decay']:g}", fontsize=9)
    for row in axes:
        row[0].set_ylabel("NC1")
    for ax in axes[-1]:
        ax.set_xlabel("layer")
    axes[0, 0].legend(frameon=False, fontsize=7)
    figure.savefig(lab.figure("nc1.png"))


def draw_straightness(results: list[dict[str, Any]], lab: Lab) -> None:
    """Draw the line's unexplained variance against the straightness of the network."""
    figure = Figure(figsize=(7.0, 2.8), layout="constrained", dpi=160)
    axes = figure.subplots(1, 2)
    for ax, name in zip(axes, ("line_shape_ratio", "length_ratio"), strict=True):
        for (data,), group in by(results, "data").items():
            x = [r[name] for r in group]
            y = [100 * inner_unexplained(r, "geodesic model") for r in group]
            ax.plot(x, y, MARKERS[data], ms=5, alpha=0.8, label=data)
        ax.set_xlabel(
            {"line_shape_ratio": "line-shape ratio", "length_ratio": "W2 length ratio"}[name]
        )
    axes[0].set_ylabel("unexplained variance (%)")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(lab.figure("straightness.png"))


if __name__ == "__main__":
    main()

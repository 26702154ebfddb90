"""Which unconstrained feature model describes a trained network? Claim E3.

python experiments/13_extended_model/run.py
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import heads
from gradient import gradient_descent
from lab import Bench, Cell, Lab, by, spread, table
from matplotlib.figure import Figure

from wgeo.neural_collapse import collapse_of
from wgeo.ufm import fit_deep, fit_mse
from wgeo.ufm.certify import evaluate
from wgeo.ufm.descent import random_points
from wgeo.ufm.record import cosines

Result = dict[str, Any]
METRICS = {"nc1": "NC1", "nc2_etf": "NC2, to ETF", "nc3": "NC3"}
COMPARED = {
    **{(-1, key): f"before W_2: {name}" for key, name in METRICS.items()},
    (0, "nc1"): "before W_1: NC1",
    (0, "nc2_etf"): "before W_1: NC2, to ETF",
}
MODELS = ("plain", "extended, linear", "extended, ReLU")
LOOK = {
    "network": ("#222222", "o", "-"),
    "plain": ("#E69F00", "s", "--"),
    "extended, linear": ("#009E73", "^", ":"),
    "extended, ReLU": ("#0072B2", "D", "-."),
}


# --- description of the features and weights of a network or of a model ---------------------------


def described(features: list[np.ndarray], weights: list[np.ndarray], y: np.ndarray) -> Result:
    """Describe features (columns are samples) and weights: metrics, loss, norms, signs."""
    onehot = np.eye(len(weights[-1]))[:, y]
    answers = weights[-1] @ features[-1]
    layers = []
    for index, X in enumerate(features):
        last = index == len(features) - 1
        metrics = collapse_of(np.ascontiguousarray(X.T), y, weights[-1] if last else None)
        means = np.stack([X[:, y == k].mean(1) for k in range(len(onehot))])
        off = cosines(means)[~np.eye(len(means), dtype=bool)]
        layers.append(
            {
                **{key: getattr(metrics, key) for key in METRICS},
                "cosine": float(off.mean()),
                "negative": float((np.abs(np.minimum(X, 0)) > 1e-9).mean()),
            }
        )
    return {
        "loss": float(((answers - onehot) ** 2).sum()) / (2 * len(y)),
        "logit": float(answers[y, np.arange(len(y))].mean()),
        "norms": [float((W**2).sum()) for W in weights],
        "energy": [float((X**2).sum()) / len(y) for X in features],
        "layers": layers,
    }


# --- the network ----------------------------------------------------------------------------------


def compare(cell: Cell, bench: Bench) -> Result:
    """Train a network and measure it over training; minimize the models, also by descent."""
    images = heads.subset(
        bench, cell["data"], range(10), cell["per_class"], size=cell["size"] or None
    )
    shape = {key: cell[key] for key in ("backbone", "options", "width", "layers")}
    keys = ("epochs", "lr", "schedule", "weight_decay", "batch_size", "checkpoints", "seed")
    recipe = {key: cell[key] for key in keys}
    run = heads.trained(bench, images, shape, **recipe, evaluate_every=cell["epochs"])
    path = []
    for file in run.checkpoints:
        saved = torch.load(file, weights_only=True)
        run.module.load_state_dict(saved["state_dict"])
        seen = described(heads.entering(run.module, images), heads.weights_of(run.module), images.y)
        path.append({"epoch": saved["epoch"], **seen})
    end = path[-1]
    found: Result = {"accuracy": run.accuracy, "network": path}
    for name in MODELS:
        found[name] = model(cell, name, end)
    return found


def decays_of(cell: Cell, name: str, end: Result) -> list[float]:
    """Return the model's decays: that of the features, then those of the weights (the network's).

    At a critical point of a model all decay_i ||A_i||^2 are equal; the decay of the features is
    chosen so that this holds for the norms with which the network ended.
    """
    first = -1 if name == "plain" else 0
    decay = cell["weight_decay"]
    mass = decay * end["norms"][first] / end["energy"][first]  # decay times number of samples
    weights = [decay] if name == "plain" else [decay, decay]
    return [mass / (10 * cell["models"]["per_class"]), *weights]


def model(cell: Cell, name: str, end: Result) -> Result:
    """Return the model's minimum, and the paths of gradient descent from random points."""
    settings = cell["models"]
    labels = np.repeat(np.arange(10), settings["per_class"])
    feature_decay, *weight_decays = decays_of(cell, name, end)
    d = cell["width"]
    if name == "plain":
        best = fit_mse(labels, dim=d, weight_decay=weight_decays[0], feature_decay=feature_decay)
    else:
        activation = "relu" if name.endswith("ReLU") else "linear"
        best = fit_deep(
            labels,
            dim=d,
            weight_decays=weight_decays,
            feature_decay=feature_decay,
            activation=activation,
            collapsed=True,
            restarts=settings["restarts"],
            max_steps=settings["steps"],
        )
    problem = best.problem
    paths: list[list[Result]] = [[] for _ in range(settings["starts"])]

    def look(step: int, x: torch.Tensor) -> None:
        for path, row in zip(paths, x, strict=True):
            (H, *weights), _ = problem.split(row)
            point = evaluate(problem, H=H, weights=weights)
            seen = described(list(point.layers), list(point.weights), labels)
            path.append({"step": step, **seen})

    starts = random_points(problem, settings["starts"], cell["seed"]) * 0.5
    gradient_descent(problem, starts, max(settings["at"]), at=settings["at"], look=look)
    optimum = described(list(best.layers), list(best.weights), labels)
    metrics = best.collapse()  # a check of `described`, which is also used for networks
    assert metrics.nc2_etf is None or math.isclose(
        metrics.nc2_etf, optimum["layers"][-1]["nc2_etf"], abs_tol=1e-9
    )
    return {
        "decays": [feature_decay, *weight_decays],
        "objective": best.objective,
        "verdict": best.certificate.verdict,
        "optimum": optimum,
        "paths": paths,
    }


# --- tables ---------------------------------------------------------------------------------------


def end_table(results: list[Result], lab: Lab) -> None:
    """Tabulate networks after training and models at their minima."""
    rows = []
    for (data,), group in by(results, "data").items():
        for name in ("network", *MODELS):
            ends = [r["network"][-1] if name == "network" else r[name]["optimum"] for r in group]
            last = [end["layers"][-1] for end in ends]
            first = [end["layers"][0] for end in ends] if name != "plain" else []
            rows.append(
                [
                    data,
                    name,
                    spread([end["logit"] for end in ends]),
                    spread([end["norms"][-1] for end in ends]),
                    *(spread([layer[key] for layer in last], ".2g") for key in METRICS),
                    spread([layer["cosine"] for layer in last], ".2g"),
                    _negative(name, last),
                    *(
                        spread([layer[key] for layer in first], ".2g") if first else "not modeled"
                        for key in ("nc1", "nc2_etf", "cosine")
                    ),
                ]
            )
    head = ["data", "", "mean logit of the class", "squared norm of W_2", *METRICS.values()]
    head += ["mean cosine", "negative features", "before W_1: NC1", "NC2, to ETF", "mean cosine"]
    lab.write("ends", table(head, rows))


def _negative(name: str, layers: list[Result]) -> str:
    """Return the share of negative features, which linear models do not determine."""
    if name in ("plain", "extended, linear"):
        return "not determined"
    return f"{np.mean([layer['negative'] for layer in layers]):.0%}"


def path_table(results: list[Result], lab: Lab) -> None:
    """Tabulate the distance of the models' paths from the network's at equal loss, in decades."""
    rows = []
    for (data,), group in by(results, "data").items():
        for name in MODELS:
            apart = [over_seeds(group, name, *of) for of in COMPARED]
            cells = [spread(values, ".2f") if values else "not modeled" for values in apart]
            rows.append([data, name, *cells])
    lab.write("paths", table(["data", "model", *COMPARED.values()], rows))


def pair_table(results: list[Result], lab: Lab) -> None:
    """Tabulate how much nearer the ReLU model is to each network than the other models are."""
    rows = []
    for (data,), group in by(results, "data").items():
        relu = {of: over_seeds(group, "extended, ReLU", *of) for of in COMPARED}
        for name in ("plain", "extended, linear"):
            row: list[Any] = [data, name, len(group)]
            for of, near in relu.items():
                far = over_seeds(group, name, *of)
                gains = np.subtract(far, near) if far else []
                count = sum(gain > 0 for gain in gains)
                row.append(f"{spread(gains, '+.2f')} ({count})" if far else "not modeled")
            rows.append(row)
    lab.write("pairs", table(["data", "farther than ReLU", "networks", *COMPARED.values()], rows))


def over_seeds(group: list[Result], name: str, layer: int, key: str) -> list[float]:
    """Return a model's distance from each network, mean over starts; empty if not modeled."""
    if name == "plain" and layer == 0:
        return []
    return [
        float(np.nanmean([apart(r["network"], path, layer, key) for path in r[name]["paths"]]))
        for r in group
    ]


def apart(network: list[Result], path: list[Result], layer: int, key: str) -> float:
    """Return the root mean squared difference of a metric's log10, as functions of the loss."""
    ways = []
    for way in (network, path):
        points = [
            (math.log10(p["loss"]), math.log10(max(p["layers"][layer][key], 1e-12)))
            for p in way
            if p["layers"][layer][key] is not None and p["loss"] > 0
        ]
        # The loss serves as time: keep only the points with a lower loss than all earlier ones.
        kept = [p for i, p in enumerate(points) if all(p[0] < q[0] for q in points[:i])]
        ways.append(np.array(kept[::-1]).reshape(-1, 2))
    low, high = max(w[:, 0].min() for w in ways), min(w[:, 0].max() for w in ways)
    if not low < high:
        return math.nan
    at = np.linspace(low, high, 50)
    one, other = (np.interp(at, w[:, 0], w[:, 1]) for w in ways)
    return float(np.sqrt(np.mean((one - other) ** 2)))


def draw(results: list[Result], lab: Lab) -> None:
    """Draw metrics against the loss: the network in training, the models in gradient descent."""
    groups = by(results, "data")
    panels = [(-1, key, f"before W2: {name}") for key, name in METRICS.items()]
    panels.append((0, "nc1", "before W1: NC1"))
    figure = Figure(figsize=(9.6, 2.7 * len(groups)), layout="constrained", dpi=160)
    axes = figure.subplots(len(groups), len(panels), squeeze=False)
    for row, ((data,), group) in zip(axes, groups.items(), strict=True):
        for ax, (layer, key, title) in zip(row, panels, strict=True):
            for name, (colour, marker, style) in LOOK.items():
                if name == "plain" and layer == 0:
                    continue
                ways = [r["network"] for r in group] if name == "network" else [
                    r[name]["paths"][0] for r in group
                ]  # fmt: skip
                for order, way in enumerate(ways):
                    loss = [p["loss"] for p in way]
                    metric = [p["layers"][layer][key] for p in way]
                    ax.plot(
                        loss,
                        [np.nan if m is None else max(m, 1e-12) for m in metric],
                        style,
                        color=colour,
                        marker=marker,
                        ms=2.5,
                        lw=1,
                        label=None if order else name,
                    )
            ax.set_xscale("log")
            ax.set_yscale("log")
            ax.invert_xaxis()
            ax.set_title(f"{data}, {title}", loc="left", fontsize=8)
            ax.tick_params(labelsize=7)
    for ax in axes[-1]:
        ax.set_xlabel("loss (training goes right)", fontsize=8)
    axes[0, -1].legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, fontsize=7)
    figure.savefig(lab.figure("paths.png"))


def main() -> None:
    lab = Lab(__file__)
    s = lab.settings
    training = {key: value for key, value in s["training"].items() if key != "seeds"}
    cells = [
        {**net, **training, "models": s["models"], "seed": seed}
        for net in s["networks"]
        for seed in s["training"]["seeds"]
    ]
    results = lab.measure(compare, cells)
    end_table(results, lab)
    path_table(results, lab)
    pair_table(results, lab)
    draw(results, lab)


if __name__ == "__main__":
    main()

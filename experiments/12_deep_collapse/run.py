"""Do deep unconstrained feature models end in deep neural collapse? Claims D1 to D4.

python experiments/12_deep_collapse/run.py --data mnist=npz:mnist.npz --jobs 2
"""

from __future__ import annotations

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

from wgeo.errors import ArgumentError
from wgeo.ufm import deep_collapse, fit_deep, lower_rank
from wgeo.ufm.certify import evaluate
from wgeo.ufm.deep import deep_collapse_of
from wgeo.ufm.descent import descend, random_points
from wgeo.ufm.problem import Problem
from wgeo.ufm.spectral import spectral_optimum

REACHED = 1e-6  # a start reaches deep neural collapse if its relative excess is at most this
FLOORS = (
    1e-4,
    1e-3,
    1e-2,
    1e-1,
)  # DNC3 is taken over the rows longer than these fractions of the longest row
Result = dict[str, Any]


def binary(cell: Cell, bench: Bench) -> Result:
    """D1, D2: objectives and metrics at the end points of random starts, for two classes."""
    n, L = cell["per_class"], cell["layers"]
    decays = [cell["decay"] / n] + [cell["decay"]] * L
    problem = Problem.checked(np.repeat([0, 1], n), cell["dim"], decays, activation="relu")
    x = random_points(problem, cell["seeds"], 0)
    if cell["method"] == "L-BFGS":
        end = descend(problem, x, tolerance=1e-6)
        x, values, norms = end.x, end.value, end.gradient_norm
    else:
        x, values, norms = gradient_descent(problem, x, cell["steps"])
    goal = spectral_optimum(problem).value
    zero = 0.5
    reached = (values - goal) <= REACHED * goal
    metrics: dict[str, list[float]] = {"dnc1": [], "dnc2": [], "dnc3": []}
    worst = dict.fromkeys(FLOORS, 0.0)
    for row in x[reached]:
        (H, *weights), _ = problem.split(row)
        point = evaluate(problem, H=H, weights=weights)
        for X, W in zip(point.layers[1:], point.weights[1:], strict=True):
            for floor, value in dnc3_of_long_rows(X, problem.labels, W).items():
                worst[floor] = max(worst[floor], value)
        for layer in deep_collapse(point):
            for name in metrics if layer.layer > 1 else ("dnc1",):
                value = getattr(layer, name)
                metrics[name].append(float("inf") if value is None else value)
    return {
        "goal": goal,
        "lowest": float(values.min()) - goal,
        "critical": float((norms <= 1e-5).double().mean()),
        "reached": float(reached.double().mean()),
        "zero": float(((values - zero).abs() < 1e-3).double().mean()),
        **{name: quantiles(found) for name, found in metrics.items()},
        "dnc3_of_rows": worst if reached.any() else None,
    }


def dnc3_of_long_rows(X: np.ndarray, y: np.ndarray, W: np.ndarray) -> dict[float, float]:
    """Return DNC3 over the rows of W longer than each fraction of the longest."""
    lengths = np.linalg.norm(W, axis=1)
    return {
        floor: deep_collapse_of(X, y, W[lengths > floor * lengths.max()], layer=2).dnc3 or 0.0
        for floor in FLOORS
    }


def quantiles(values: list[float]) -> list[float] | None:
    """Return the median and the maximum."""
    return [float(np.median(values)), float(np.max(values))] if values else None


def several(cell: Cell, bench: Bench) -> Result:
    """D4: deep neural collapse, an explicit point below it, and the best point found."""
    K, L = cell["pair"]
    given = {"dim": K + 2, "weight_decays": [cell["decay"]] * L, "feature_decay": cell["decay"]}
    labels = np.arange(K)
    problem = Problem.checked(labels, K + 2, [cell["decay"]] * (L + 1), activation="relu")
    collapse = spectral_optimum(problem).value
    found = fit_deep(
        labels, activation="relu", restarts=cell["seeds"], max_steps=cell["steps"], **given
    )
    result = {
        "collapse": collapse,
        "searched": min(found.values),
        "below": float(np.mean(np.array(found.values) < collapse * (1 - REACHED))),
        "at": float(np.mean(np.abs(np.array(found.values) / collapse - 1) <= REACHED)),
        "explicit": None,
        "around": None,
        "ranks": ranks(found) if found.objective < collapse * (1 - REACHED) else None,
    }
    try:
        explicit = lower_rank(labels, **given)
    except ArgumentError:
        return result
    around = {
        "start": explicit,
        "restarts": cell["around"],
        "spread": 0.1,
        "max_steps": cell["steps"],
    }
    lower = fit_deep(labels, activation="relu", **around, **given)
    best = min((found, lower), key=lambda s: s.objective)
    return {
        **result,
        "explicit": explicit.objective,
        "blocks": explicit.settings["blocks"],
        "around": lower.objective,
        "ranks": ranks(best),
        "norm": best.certificate.gradient_norm,
    }


def ranks(solution: Any) -> list[int]:
    """Return the numerical rank of the features before every weight matrix."""
    return [int(np.linalg.matrix_rank(X, tol=1e-3 * np.linalg.norm(X, 2))) for X in solution.layers]


def network(cell: Cell, bench: Bench) -> Result:
    """D3: DNC1 to DNC3 in the head of a trained network, before and after training."""
    images = heads.subset(
        bench, cell["data"], cell["classes"], cell["per_class"], size=cell["size"] or None
    )
    shape = {key: cell[key] for key in ("backbone", "options", "width", "layers")}
    recipe = {
        key: cell[key] for key in ("epochs", "lr", "schedule", "weight_decay", "batch_size", "seed")
    }
    run = heads.trained(
        bench, images, shape, **recipe, checkpoints=[0], evaluate_every=cell["epochs"]
    )
    torch.manual_seed(cell["seed"])
    fresh = heads.Headed(images.num_classes, images.shape, **shape)
    found: Result = {"accuracy": run.accuracy, "loss": run.history[-1]["loss"]}
    for name, net in (("start", fresh), ("end", run.module)):
        pairs = list(zip(heads.entering(net, images), heads.weights_of(net), strict=True))
        found[name] = [
            deep_collapse_of(X, images.y, W, layer=layer).to_dict()
            for layer, (X, W) in enumerate(pairs, 1)
        ]
    found["dnc3_of_rows"] = [dnc3_of_long_rows(X, images.y, W) for X, W in pairs[1:]]
    found["norms"] = [float((W**2).sum()) for W in heads.weights_of(run.module)]
    return found


# --- tables ---------------------------------------------------------------------------------------


def ratio(value: float | None, base: float) -> str:
    return "" if value is None else f"{value / base:.4f}"


def main() -> None:
    lab = Lab(__file__)
    s = lab.settings
    common = {key: s[key] for key in ("dim", "per_class", "decay")}
    cells = [
        {"method": "L-BFGS", "layers": L, "seeds": s["seeds"], **common} for L in s["layers"]
    ] + [
        {"method": "gradient descent", "layers": L, "seeds": s["descent_seeds"], **common,
         "steps": s["descent_steps"]}
        for L in s["descent_layers"]
    ]  # fmt: skip
    binaries = lab.measure(binary, cells)
    rows = []
    for found in binaries:
        cell = found["cell"]
        rows.append(
            [
                cell["method"],
                cell["layers"],
                f"{found['goal']:.9f}",
                f"{found['lowest']:.1e}",
                f"{found['reached']:.0%} of {cell['seeds']}",
                f"{found['zero']:.0%}",
                f"{found['critical']:.0%}",
                *(
                    "" if found[name] is None else "{:.0e} / {:.0e}".format(*found[name])
                    for name in ("dnc1", "dnc2", "dnc3")
                ),
            ]
        )
    head = ["method", "L", "value of DNC", "lowest − DNC", "reach DNC", "end at zero", "critical"]
    metrics = ["DNC1", "DNC2", "DNC3"]
    lab.write("binary", table([*head, *(f"{m}: median / largest" for m in metrics)], rows))
    rows = [
        [found["cell"]["method"], found["cell"]["layers"]]
        + [f"{found['dnc3_of_rows'][str(floor)]:.0e}" for floor in FLOORS]
        for found in binaries
        if found["dnc3_of_rows"] is not None
    ]
    head = ["method", "L", *(f"rows longer than {floor:g}" for floor in FLOORS)]
    lab.write("rows", table(head, rows))

    cells = [
        {
            "pair": pair,
            "decay": s["search_decay"],
            "seeds": s["search_seeds"],
            "around": s["around"],
            "steps": s["search_steps"],
        }
        for pair in s["pairs"]
    ]
    rows = []
    for found in lab.measure(several, cells):
        (K, L), base = found["cell"]["pair"], found["collapse"]
        rows.append(
            [
                K,
                L,
                f"{base:.9f}",
                "" if found["explicit"] is None else f"{found['explicit']:.9f}",
                ratio(found["explicit"], base),
                ratio(found["around"], base),
                ratio(found["searched"], base),
                f"{found['at']:.0%}",
                f"{found['below']:.0%}",
                "" if found["ranks"] is None else ", ".join(map(str, found["ranks"])),
            ]
        )
    head = ["K", "L", "DNC", "explicit point", "explicit / DNC", "descended from there / DNC"]
    head += ["best of random starts / DNC", "starts at DNC", "starts below", "ranks of the best"]
    lab.write("several", table(head, rows))

    training = {key: value for key, value in s["training"].items() if key != "seeds"}
    cells = [
        {**net, **training, "seed": seed}
        for net in s["networks"]
        for seed in s["training"]["seeds"]
    ]
    results = lab.measure(network, cells)
    for found in results:
        found["cell"]["K"] = len(found["cell"]["classes"])
    rows = []
    for (K, L), group in by(results, "K", "layers").items():
        for layer in range(L):
            now, before = ([r[when][layer] for r in group] for when in ("end", "start"))
            rows.append(
                [
                    K,
                    L,
                    f"W{layer + 1}",
                    *(
                        "left open"
                        if layer == 0 and name != "dnc1"
                        else f"{spread([m[name] for m in before], '.2g')} → "
                        f"{spread([m[name] for m in now], '.2g')}"
                        for name in ("dnc1", "dnc2", "dnc3")
                    ),
                    spread([r["norms"][layer] for r in group]),
                    f"{np.mean([r['accuracy'] for r in group]):.3f}",
                ]
            )
    head = ["K", "L", "features into", "DNC1: start → end", "DNC2", "DNC3", "squared norm of W"]
    lab.write("networks", table([*head, "accuracy"], rows))
    rows = []
    for (K, L), group in by(results, "K", "layers").items():
        for layer in range(L):
            falls = [r["start"][layer]["dnc1"] / r["end"][layer]["dnc1"] for r in group]
            row: list[Any] = [K, f"W{layer + 1}", f"{min(falls):.0f} to {max(falls):.0f}"]
            for floor in FLOORS:
                values = [r["dnc3_of_rows"][layer - 1][str(floor)] for r in group]
                row.append(spread(values, ".2g") if layer else "left open")
            rows.append(row)
    head = ["K", "features into", "DNC1: start / end"]
    head += [f"DNC3, rows longer than {floor:g}" for floor in FLOORS]
    lab.write("rows of networks", table(head, rows))
    draw(results, lab)


def draw(results: list[Result], lab: Lab) -> None:
    """Draw DNC1 to DNC3 before every weight matrix of the heads, before and after training."""
    groups = by(results, "K", "layers")
    figure = Figure(figsize=(7.2, 2.5 * len(groups)), layout="constrained", dpi=160)
    axes = figure.subplots(len(groups), 3, squeeze=False)
    for row, ((K, L), group) in zip(axes, groups.items(), strict=True):
        for ax, name in zip(row, ("dnc1", "dnc2", "dnc3"), strict=True):
            for when, colour, style in (("start", "#999999", "--"), ("end", "#0072B2", "-")):
                for result in group:
                    values = [layer[name] for layer in result[when]]
                    at = np.arange(1, L + 1)
                    known = np.array([np.nan if v is None else v for v in values])
                    ax.plot(at, known, style, color=colour, marker="o", ms=3, lw=1)
            ax.set_yscale("log")
            ax.set_xticks(np.arange(1, L + 1), [f"W{layer}" for layer in at])
            ax.set_title(f"{name.upper()}, K = {K}, L = {L}", loc="left", fontsize=9)
    figure.supxlabel("features that enter (dashed: untrained)", fontsize=9)
    figure.savefig(lab.figure("heads.png"))


if __name__ == "__main__":
    main()

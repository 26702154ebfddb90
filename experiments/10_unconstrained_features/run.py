"""Are simplex ETFs the only minima of the unconstrained feature models? Claims U1, U2, E1, E2.

python experiments/10_unconstrained_features/run.py
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import least_squares

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import Bench, Cell, Lab, by, table
from matplotlib.figure import Figure

from wgeo.ufm import fit_ce, fit_deep, fit_mse, landscape
from wgeo.ufm.certify import evaluate
from wgeo.ufm.record import cosines

Result = dict[str, Any]
FITS = {
    "ce": (fit_ce, "free"),
    "mse": (fit_mse, "none"),
    "mse, free bias": (fit_mse, "free"),
}

# Names of the models in the table of critical points. In this table every bias has a small decay.
DECAYED = {"ce": "ce, decayed bias", "mse": "mse", "mse, free bias": "mse, decayed bias"}

LOOK = {-1: ("#D55E00", "v"), 0: ("#0072B2", "o"), 3: ("#009E73", "^")}  # by d - K


# --- closed form and descent ----------------------------------------------------------------------


def grid(cell: Cell, bench: Bench) -> Result:
    """Solve a model in closed form and by descent, in which every sample has its own features."""
    K, n = cell["classes"], cell["per_class"]
    fit, bias = FITS[cell["model"]]
    rows = []
    for extra in cell["extra"]:
        if K + extra < 1:
            continue
        for active in cell["active"]:
            product = (active / K) ** 2 / n  # lw lh
            lw = math.sqrt(product * cell["ratio"])
            given = {
                "dim": K + extra,
                "weight_decay": lw,
                "feature_decay": product / lw,
                "bias": bias,
            }
            labels = np.repeat(np.arange(K), n)
            known = fit(labels, method="closed", **given)
            found = fit(
                labels, method="numerical", restarts=cell["starts"], collapsed=False, **given
            )
            metrics = found.collapse()
            rows.append(
                {
                    "extra": extra,
                    "active": active,
                    "error": abs(found.objective - known.objective),
                    "spread": found.values[-1] - found.values[0],
                    "closed": known.certificate.verdict,
                    "found": found.certificate.verdict,
                    "slope": found.certificate.gradient_norm,
                    **{key: getattr(metrics, key) for key in ("nc1", "nc2_etf", "nc3")},
                    "cosine": off_diagonal(found),
                    "error_probability": active * (K - 1) / K,
                }
            )
    return {"rows": rows}


def off_diagonal(solution: Any) -> list[float] | None:
    """Return the smallest and largest cosine between two class means; None if all vanish."""
    K = len(solution.W)
    means = np.stack([solution.H[:, solution.labels == k].mean(1) for k in range(K)])
    if np.linalg.norm(means) < 1e-3:
        return None
    cosine = cosines(means)[~np.eye(K, dtype=bool)]
    return [float(np.nanmin(cosine)), float(np.nanmax(cosine))]


def grid_tables(results: list[Result], lab: Lab) -> None:
    rows = []
    for (model,), group in by(results, "model").items():
        for name, wanted in (("d < K", lambda e: e < 0), ("d ≥ K", lambda e: e >= 0)):
            all_ = [row for r in group for row in r["rows"] if wanted(row["extra"])]
            whole = model != "mse" or name != "d < K"  # K orthogonal means need d >= K
            alive = [row for row in all_ if row["active"] < 0.95 and whole]
            rows.append(
                [
                    model,
                    name,
                    len(all_),
                    f"{max(row['error'] for row in all_):.0e}",
                    f"{max(row['spread'] for row in all_):.0e}",
                    share(row["found"] == "global" for row in all_),
                    *(largest(row[key] for row in alive) for key in ("nc1", "nc2_etf", "nc3")),
                ]
            )
    head = ["model", "", "settings", "largest error of the value", "largest spread over starts"]
    head += ["certified global", "NC1", "NC2, to ETF", "NC3"]
    lab.write("grid", table(head, rows))


def largest(values: Iterable[float | None]) -> str:
    """Return the largest defined value; NC1 and NC2 are undefined for one sample per class."""
    defined = [value for value in values if value is not None]
    return f"{max(defined):.0e}" if defined else ""


def share(conditions: Any) -> str:
    conditions = list(conditions)
    return f"{sum(conditions)} of {len(conditions)}"


# --- critical points ------------------------------------------------------------------------------


def critical(cell: Cell, bench: Bench) -> Result:
    """Find critical points of any kind by minimizing ||grad F||^2, and classify each."""
    K, n = cell["classes"], cell["per_class"]
    fit, bias = FITS[cell["model"]]
    given = {"dim": K + cell["extra"], "weight_decay": 2e-2, "feature_decay": 1e-2}
    # a small decay of the bias, so that no direction is flat
    given["bias"] = bias if bias == "none" else 1e-2
    labels = np.repeat(np.arange(K), n)
    best = fit(labels, **given)
    problem = best.problem
    eye = torch.eye(problem.size, dtype=torch.float64)
    rng = np.random.default_rng([K, cell["extra"] + 1, cell["starts"]])

    def gradient(x: np.ndarray) -> np.ndarray:
        return problem.gradient(torch.from_numpy(x)).numpy()

    def hessian(x: np.ndarray) -> np.ndarray:
        at = torch.from_numpy(x).expand(problem.size, -1)
        return problem.hvp(at, eye).numpy()

    kinds: Counter[str] = Counter()
    levels: set[float] = set()
    fallen, curvatures, above, errors = [], [], [], []
    for _ in range(cell["starts"]):
        x = rng.standard_normal(problem.size) * 10 ** rng.uniform(-2, 0.5)
        end = least_squares(gradient, x, hessian, method="trf", xtol=1e-15, ftol=1e-15, gtol=1e-15,
                            max_nfev=300)  # fmt: skip
        if np.linalg.norm(gradient(end.x)) > 1e-9:
            kinds["not critical"] += 1
            continue
        (H, *weights), b = problem.split(torch.from_numpy(end.x))
        point = evaluate(problem, H=H, weights=weights, b=b)
        seen = landscape(point)
        kinds[seen.verdict] += 1
        if seen.verdict == "global":
            above.append(point.objective - best.objective)
        elif seen.verdict == "strict saddle":
            levels.add(round(point.objective, 6))
            fallen.append(seen.decrease)
            curvatures.append(seen.curvature)
            predicted = point.certificate.curvature
            if predicted is not None:
                dense = np.linalg.eigvalsh(hessian(end.x))
                errors.append(float(abs(dense - predicted).min()))
    return {
        "kinds": dict(kinds),
        "levels": sorted(levels),
        "fallen": min(fallen, default=None),
        "curvature": max(curvatures, default=None),
        "explicit": len(errors),
        "explicit_error": max(errors, default=None),
        "above": max(above, default=None),
    }


def critical_table(results: list[Result], lab: Lab) -> None:
    rows = []
    for found in results:
        cell, kinds = found["cell"], found["kinds"]
        rows.append(
            [
                DECAYED[cell["model"]],
                cell["classes"],
                cell["classes"] + cell["extra"],
                cell["starts"] - kinds.get("not critical", 0),
                kinds.get("global", 0),
                kinds.get("strict saddle", 0),
                kinds.get("undecided", 0),
                len(found["levels"]),
                _or_none(found["above"]),
                _or_none(found["curvature"]),
                _or_none(found["fallen"]),
                f"{found['explicit']} (error {_or_none(found['explicit_error'])})",
            ]
        )
    head = ["model", "K", "d", "critical points", "global", "strict saddles", "undecided"]
    head += [
        "saddle levels",
        "global: largest excess over the minimum",
        "saddles: weakest curvature",
    ]
    head += ["saddles: smallest decrease", "explicit directions"]
    lab.write("critical", table(head, rows))


def _or_none(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"


# --- squared loss with every kind of bias ---------------------------------------------------------


def bias(cell: Cell, bench: Bench) -> Result:
    """E1: angles between class means for several decays of the bias; minority collapse."""
    labels = np.repeat(np.arange(len(cell["counts"])), cell["counts"])
    given = {"dim": 4, "weight_decay": 1e-2, "feature_decay": 5e-3, "bias": cell["bias_decay"]}
    known = fit_mse(labels, method="closed", **given)
    found = fit_mse(labels, method="numerical", restarts=5, collapsed=False, **given)
    means = [np.linalg.norm(known.H[:, labels == k].mean(1)) for k in range(len(cell["counts"]))]
    return {
        "value": known.objective,
        "error": abs(found.objective - known.objective),
        "cosine": off_diagonal(known),
        "to_etf": known.collapse().nc2_etf,
        "norms": [float(norm) for norm in means],
        "b": known.b.tolist(),
        "verdict": known.certificate.verdict,
    }


def bias_table(results: list[Result], lab: Lab) -> None:
    rows = []
    for found in results:
        low, high = found["cosine"]
        rows.append(
            [
                ", ".join(map(str, found["cell"]["counts"])),
                found["cell"]["bias_decay"],
                f"{found['value']:.12f}",
                f"{found['error']:.0e}",
                f"{low:.3f}" if high - low < 1e-6 else f"{low:.3f} to {high:.3f}",
                ", ".join(f"{norm:.2f}" for norm in found["norms"]),
                ", ".join(f"{value:.3f}" for value in found["b"]),
                found["verdict"],
            ]
        )
    head = ["class sizes", "decay of the bias", "value", "error of the descent"]
    head += ["cosines of class means", "their norms", "bias", "certificate"]
    lab.write("bias", table(head, rows))


# --- one more layer and a ReLU --------------------------------------------------------------------


def extended(cell: Cell, bench: Bench) -> Result:
    """E2: the extended ReLU model from random starts, compared with the linear closed form."""
    K = cell["classes"]
    labels = np.repeat(np.arange(K), 2)
    given = {"dim": K + 3, "weight_decays": [3e-3, 2e-3], "feature_decay": 1e-3}
    linear = fit_deep(labels, **given)
    found = fit_deep(labels, activation="relu", restarts=cell["starts"], **given)
    values = np.array(found.values)
    excess = (values - linear.objective) / linear.objective
    return {
        "linear": linear.objective,
        "lowest": float(values.min() - linear.objective),
        "share": float((excess < 1e-6).mean()),
        "after": off_diagonal_of(found.layers[1], labels),
        "before": off_diagonal_of(found.layers[0], labels),
        "nc1": [layer.nc1 for layer in found.curve()],
        "nc3": found.collapse().nc3,
    }


def off_diagonal_of(X: np.ndarray, labels: np.ndarray) -> list[float]:
    means = np.stack([X[:, labels == k].mean(1) for k in range(labels.max() + 1)])
    cosine = cosines(means)[~np.eye(len(means), dtype=bool)]
    return [float(cosine.min()), float(cosine.max())]


def extended_table(results: list[Result], lab: Lab) -> None:
    rows = []
    for found in results:
        ends = ("{:.3f} to {:.3f}".format(*found[when]) for when in ("before", "after"))
        rows.append(
            [
                found["cell"]["classes"],
                f"{found['linear']:.12f}",
                f"{found['lowest']:.0e}",
                f"{found['share']:.0%} of {found['cell']['starts']}",
                *ends,
                " / ".join(f"{nc1:.0e}" for nc1 in found["nc1"]),
            ]
        )
    head = ["K", "linear closed form", "best of the ReLU model − that", "starts that reach it"]
    head += ["cosines in H", "cosines in relu(W_1 H)", "NC1 of both"]
    lab.write("extended", table(head, rows))


def draw(results: list[Result], lab: Lab) -> None:
    """Draw the difference between descent and closed form, against K sqrt(n lw lh)."""
    figure = Figure(figsize=(7.2, 2.6), layout="constrained", dpi=160)
    axes = figure.subplots(1, len(FITS), sharey=True)
    for ax, (model,) in zip(axes, by(results, "model"), strict=True):
        rows = [row for r in results if r["cell"]["model"] == model for row in r["rows"]]
        for extra, (colour, marker) in LOOK.items():
            chosen = [row for row in rows if row["extra"] == extra]
            ax.scatter(
                [row["active"] for row in chosen],
                [max(row["error"], 1e-17) for row in chosen],
                s=12,
                color=colour,
                marker=marker,
                alpha=0.7,
                label=f"d = K{extra:+d}" if extra else "d = K",
            )
        ax.axhline(1e-8, color="#999999", lw=0.8, ls="--")
        ax.axvline(1, color="#999999", lw=0.8, ls=":")
        ax.set_yscale("log")
        ax.set_title(model, loc="left", fontsize=9)
        ax.set_xlabel("K √(n λ_W λ_H)")
    axes[0].set_ylabel("|descent − closed form|")
    axes[-1].legend(frameon=False, fontsize=7)
    figure.savefig(lab.figure("grid.png"))


def main() -> None:
    lab = Lab(__file__)
    s = lab.settings
    cells = lab.grid(
        *("model", "classes", "per_class"),
        **{key: s[key] for key in ("extra", "active", "ratio", "starts")},
    )
    results = lab.measure(grid, cells)
    grid_tables(results, lab)
    draw(results, lab)
    cells = [
        {"model": model, "classes": K, "extra": extra, "per_class": s["critical_per_class"],
         "starts": s["critical_starts"]}
        for model, K in s["critical"] for extra in s["critical_extra"]
    ]  # fmt: skip
    critical_table(lab.measure(critical, cells), lab)
    bias_table(lab.measure(bias, lab.grid("counts", "bias_decay")), lab)
    cells = [{"classes": K, "starts": s["extended_starts"]} for K in s["extended_classes"]]
    extended_table(lab.measure(extended, cells), lab)


if __name__ == "__main__":
    main()

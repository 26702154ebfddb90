"""Do classes collapse layer by layer, in every kind of network? Claims P1 and I1 to I4.

    python experiments/05_collapse_in_layers/run.py --jobs 1 \\
        --data mnist=npz:mnist.npz --data cifar10=cifar10.zip
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from figure import draw
from lab import Bench, Cell, Lab, by, spread, table

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
    subset = {"limit": cell["limit"], "size": cell["size"]}
    run = bench.trained(
        cell["arch"],
        cell["data"],
        **subset,
        **{key: cell[key] for key in ("activation", "loss", "seed", "epochs", "lr", "options")},
        **{key: cell[key] for key in ("weight_decay", "batch_size", "schedule")},
        checkpoints=[0],
        evaluate_every=cell["epochs"],
    )
    images = bench.images(cell["data"], **subset)
    unseen = bench.images(cell["data"], split="test", **subset)
    fresh = wgeo.load_checkpoint(run.checkpoints[0]).module
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


def summary(found: Collapse) -> Result:
    """Metrics by depth at the layers between blocks, and the trend of each."""
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
    """Mean angle between uncentered class means, in degrees, by depth.

    Centered means sum to zero, so their mean cosine is -1/(K - 1) if their norms are equal: their
    mean angle can hardly grow.
    """
    classes = np.unique(traj.labels)
    return [
        Frame.of(
            np.array([layer.features[traj.labels == k].mean(0, dtype=float) for k in classes])
        ).mean_angle
        for layer in traj.staged
    ]


# --- claims ---------------------------------------------------------------------------------------


def falls(view: Result, metric: str) -> bool | None:
    """The metric is never larger than at the previous layer."""
    return view["progress"][metric]["monotone"]


def trends(found: Result, sign: int) -> bool | None:
    """Kendall's tau with depth has this sign, and so has its 95 % interval over images."""
    if found["kendall_tau"] is None or found["interval"] is None:
        return None
    low, high = found["interval"]
    return high < 0 if sign < 0 else low > 0


def emerges(view: Result) -> bool | None:
    """In most layers before the last, NC1 is less than half of its value before training."""
    now, before = view["layers"]["nc1"][1:-1], view["start"]["nc1"][1:-1]
    known = [a < b / 2 for a, b in zip(now, before, strict=True) if None not in (a, b)]
    return sum(known) > len(known) / 2 if known else None


def early(view: Result, metric: str) -> bool | None:
    """90 % of the metric's fall is reached in the first half of the layers."""
    depth = view["progress"][metric]["reached_depth"]
    return None if depth is None else depth <= 0.5


def early_in_logarithms(view: Result, metric: str) -> bool | None:
    """The first half of the layers accounts for 90 % of the fall of the metric's logarithm."""
    share = log_share(view, metric)
    return None if share is None else share >= 0.9


def log_share(view: Result, metric: str) -> float | None:
    """Fraction of the fall of log(metric) in the first half of the layers."""
    values = [v for v in view["layers"][metric] if v is not None]
    if len(values) < 3 or min(values) <= 0 or values[-1] >= values[0]:
        return None
    fall = np.log(values[0]) - np.log(values)
    return float(np.interp(0.5, np.linspace(0, 1, len(values)), fall) / fall[-1])


def tau(values: Sequence[float]) -> float:
    """Kendall's tau with depth."""
    return float(kendalltau(np.arange(len(values)), values).statistic)


def opens(view: Result, *, strictly: bool) -> bool | None:
    """The mean angle of uncentered class means grows, at every layer or by Kendall's tau."""
    angles = view["uncentred_angle"]
    if strictly:
        return bool(np.all(np.diff(angles) >= 0))
    return tau(angles) > 0


def learned_early(view: Result) -> bool:
    """Before the last layer, the nearest class mean has 99 % of the network's accuracy."""
    return view["learned"] is not None and view["learned"] < 1


Claim = Callable[[Result], bool | None]
CLAIMS: dict[str, Claim] = {
    "P1: NC1 falls at every layer": lambda v: falls(v, "nc1"),
    "P1: NC2 (distance to an ETF) falls at every layer": lambda v: falls(v, "nc2_etf"),
    "P1: nearest-center error falls at every layer": lambda v: falls(v, "ncc_error"),
    "P1: all three": lambda v: _all(falls(v, m) for m in ("nc1", "nc2_etf", "ncc_error")),
    "P1, weaker: NC1 falls with depth (tau)": lambda v: trends(v["progress"]["nc1"], -1),
    "P1, weaker: NC2 falls with depth (tau)": lambda v: trends(v["progress"]["nc2_etf"], -1),
    "P1, weaker: the error falls with depth (tau)": lambda v: trends(
        v["progress"]["ncc_error"], -1
    ),
    "I1: most inner layers: NC1 under half of its start": emerges,
    "I2: 90 % of the fall of tr W / tr B in the first half": lambda v: early(v, "nc1_quotient"),
    "I2: 90 % of the fall of NC1 in the first half": lambda v: early(v, "nc1"),
    "I2, in logarithms: 90 % of the fall of log NC1": lambda v: early_in_logarithms(v, "nc1"),
    "I3: the mean angle of class means grows at every layer": lambda v: opens(v, strictly=True),
    "I3, weaker: it grows with depth (tau)": lambda v: opens(v, strictly=False),
    "I3, centered: the angle grows at every layer": lambda v: v["separation"]["monotone"],
    "I3, centered, weaker: it grows with depth (tau)": lambda v: trends(v["separation"], +1),
    "I3, centered: angles even out with depth (tau)": lambda v: trends(
        v["progress"]["nc2_equiangle"], -1
    ),
    "I4: learned before the last layer (training images)": learned_early,
    "I4: learned before the last layer (test images)": lambda v: learned_early(v["test"]),
}


def _all(verdicts: Any) -> bool | None:
    verdicts = list(verdicts)
    return None if None in verdicts else all(verdicts)


# --- tables ---------------------------------------------------------------------------------------


def views_of(results: Sequence[Result]) -> list[Result]:
    """One entry per network and pooling: a vision transformer has two."""
    entries = []
    for result in results:
        for pool, view in result["views"].items():
            token = " (class token)" if pool == "cls" else ""
            cell = {**result["cell"], "seen": result["cell"]["arch"] + token}
            entries.append({**result, "cell": cell, "view": view})
    return entries


SETTING = ("seen", "activation", "loss", "data")


def held(claim: Claim, views: Sequence[Result]) -> tuple[int, int]:
    """Number of settings in which a claim holds, and of those for which it is defined.

    If a setting has several seeds, the majority of them decides.
    """
    holding = defined = 0
    for group in by(views, *SETTING).values():
        verdicts = [k for k in (claim(entry["view"]) for entry in group) if k is not None]
        defined += bool(verdicts)
        holding += sum(verdicts) > len(verdicts) / 2
    return holding, defined


def counts(views: Sequence[Result], factor: str) -> str:
    """Table with a row per claim and a column per value of one factor of the grid."""
    values = list(by(views, factor))
    rows = []
    for name, claim in CLAIMS.items():
        groups = [views, *(by(views, factor)[value] for value in values)]
        cells = ["{} of {}".format(*held(claim, group)) for group in groups]
        rows.append([name, f"**{cells[0]}**", *cells[1:]])
    return table(["claim", "all", *(value[0] for value in values)], rows)


def simple_first(views: Sequence[Result], datasets: Sequence[str]) -> str:
    """I4 across data sets: how often is one learned at an earlier depth than another?

    Uses training images, and settings in which the nearest class mean of some layer is accurate
    enough.
    """
    rows = []
    for seen, group in by(views, "seen").items():
        depth = {
            key: np.mean([entry["view"]["learned"] for entry in entries])
            for key, entries in by(group, "activation", "loss", "data").items()
            if all(entry["view"]["learned"] is not None for entry in entries)
        }
        row: list[Any] = [seen[0]]
        for data in datasets:
            of = [d for key, d in depth.items() if key[-1] == data]
            row.append(f"{np.mean(of):.2f} ({len(of)})" if of else "never")
        for first, second in itertools.combinations(datasets, 2):
            pairs = [
                (d, depth[(*key[:2], second)])
                for key, d in depth.items()
                if key[-1] == first and (*key[:2], second) in depth
            ]
            earlier, later = sum(a < b for a, b in pairs), sum(a > b for a, b in pairs)
            row.append(f"{earlier} / {len(pairs) - earlier - later} / {later}")
        rows.append(row)
    pairs = [f"{a} before / with / after {b}" for a, b in itertools.combinations(datasets, 2)]
    return table(["network", *(f"depth, {data}" for data in datasets), *pairs], rows)


def over_seeds(views: Sequence[Result]) -> str:
    """Values with 95 % intervals over seeds, for the settings that have several."""
    rows = []
    for (seen, data, *_), group in by(views, "seen", "data", "activation", "loss").items():
        if len(group) < 2:
            continue
        seeds = [entry["view"] for entry in group]
        measured = [
            *([v["progress"][m]["kendall_tau"] for v in seeds] for m in ("nc1", "nc2_etf")),
            [v["progress"]["ncc_error"]["kendall_tau"] for v in seeds],
            [tau(v["uncentred_angle"]) for v in seeds],
            [v["progress"]["nc1"]["reached_depth"] for v in seeds],
            [log_share(v, "nc1") for v in seeds],
            [v["learned"] for v in seeds],
            [v["test"]["learned"] for v in seeds],
        ]
        rows.append([f"{seen}, {data}", *(spread(values, ".2f") for values in measured)])
    head = ["network, data", "tau NC1", "tau NC2", "tau error", "tau angle"]
    head += ["90 % of NC1's fall", "first half, log NC1", "learned, train", "learned, test"]
    return table(head, rows)


def untrained(results: Sequence[Result]) -> str:
    """Networks below training accuracy 0.99, which the claims do not cover."""
    names = [
        "{arch} with {activation} and {loss} on {data}, {0:.3f}".format(
            result["accuracy"], **result["cell"]
        )
        for result in results
        if not trained(result)
    ]
    return "; ".join(names) or "None."


def trained(result: Result) -> bool:
    """Whether a network has reached the training accuracy that the claims require."""
    return result["accuracy"] >= 0.99


def cells_of(lab: Lab) -> list[Cell]:
    """Every combination, with more seeds if the activation is ReLU and the loss CE."""
    cells = []
    lists = (lab.settings[name] for name in ("losses", "activations", "datasets", "archs"))
    for loss, activation, data, arch in itertools.product(*lists):
        recipe = {
            "limit": None,
            "size": None,
            **lab.settings["recipe"],
            **lab.settings["arch"][arch],
            **lab.settings["data"][data],
            "bootstrap": lab.settings["bootstrap"],
        }
        recipe["epochs"] = dict(zip(("ce", "mse"), recipe["epochs"][data], strict=True))[loss]
        patch = recipe.pop("patch")
        if arch == "vit":
            recipe["options"] = {**recipe["options"], "patch": patch}
        usual = (activation, loss) == ("relu", "ce") and data in lab.settings["seeded"]
        for seed in lab.settings["seeds" if usual else "other_seeds"]:
            setting = {"arch": arch, "activation": activation, "loss": loss, "data": data}
            cells.append({**setting, "seed": seed, **recipe})
    return sorted(cells, key=lambda cell: cell["seed"])  # every setting once, then the other seeds


def main() -> None:
    """Measure every cell; write the tables and the figure."""
    lab = Lab(__file__)
    results = lab.measure(measure, cells_of(lab))
    views = views_of([result for result in results if trained(result)])
    for factor in ("seen", "data", "activation", "loss"):
        lab.write(f"what held, by {factor}", counts(views, factor))
    lab.write("simple data first", simple_first(views, lab.settings["datasets"]))
    lab.write("over seeds", over_seeds(views))
    lab.write("not trained", untrained(results))
    draw(views, lab.figure("metrics-over-depth.png"))


if __name__ == "__main__":
    main()

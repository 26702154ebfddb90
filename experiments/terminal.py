"""Measurements and tables of 01, 02 and 06: networks in the terminal phase of training.

Straightness over training is measured on gap features, as they are and with each layer's mean
subtracted. Correlation scores between all pairs of layers, compared with those of null maps,
determine the first layer from which on the map to the last layer is nearly optimal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import recipes
from lab import Bench, Cell, Lab, by, mean_interval, spread, table
from matplotlib.figure import Figure

import wgeo

Result = dict[str, Any]
PATH = ("length_ratio", "action_ratio", "line_shape_ratio", "turning_angle", "sqrt_moving_blocks")
OPTIMAL = 0.95  # smallest correlation score that counts as nearly optimal, about cos(18 degrees)
KIND = (
    "data",
    "arch",
    "weight_decay",
    "decayed",
)  # settings of a network; its seeds are repetitions
NETWORKS = {"isoresnet": "residual", "isoplain": "plain"}
LOOK = {
    0.0: ("#E69F00", "o"),
    5e-4: ("#0072B2", "s"),
    5e-3: ("#222222", "^"),
    2e-2: ("#D55E00", "v"),
}


def path(cell: Cell, bench: Bench) -> Result:
    """Measure straightness at one epoch (None: the last); also return when accuracy reached 1."""
    run = recipes.network(bench, cell)
    net = at_epoch(run, cell["epoch"])
    images = recipes.images(bench, cell["data"], cell["full"], cell["samples"])
    right = [row["epoch"] for row in run.history if row["train_accuracy"] == 1]
    return {
        "row": {"epoch": net.provenance.epoch, **straightness(wgeo.trace(net, images))},
        "first": min(right, default=None),
        "terminal_epoch": run.terminal_epoch,
        "last_below": run.last_below,
        "accuracy": run.accuracy,
    }


def at_epoch(run: wgeo.TrainingRun, epoch: int | None) -> wgeo.Network:
    """Load the checkpoint of an epoch (None: the last)."""
    name = run.last.name if epoch is None else f"epoch-{epoch:04d}.pt"
    return wgeo.load_checkpoint(run.last.with_name(name))


def straightness(traj: wgeo.Trajectory) -> dict[str, Any]:
    """Measure the path of a network whose blocks form a single segment."""
    straight = wgeo.straightness(traj, bootstrap=0, pairs=False, nulls=0)
    segment = straight.segments[0]
    steps = [block.distance / segment.distance for block in straight.blocks]
    ends = segment.spread[-1] - segment.spread[0]
    return {
        **{name: getattr(segment, name) for name in PATH},
        **{f"centred {name}": segment.centred[name] for name in PATH},
        "ot_score": segment.ot_score,
        "ot_score_centred": segment.ot_score_centred,
        "ot_bound": ends**2 / segment.paired**2,
        "spread_ratio": segment.spread_ratio,
        "shift_share": segment.shift_share,
        "least_step": min(steps),
        "largest_step": max(steps),
        "gap": max(gap or 0.0 for gap in segment.interpolation_gap),
        "nc1": wgeo.collapse(traj).layers[-1].nc1,
    }


def optimality(cell: Cell, bench: Bench) -> Result:
    """Measure correlation scores between all layers at one epoch (None: the last)."""
    net = at_epoch(recipes.network(bench, cell), cell["epoch"])
    images = recipes.images(bench, cell["data"], cell["full"], cell["samples"])
    traj = wgeo.trace(net, images, pool=cell["pool"])
    segment = wgeo.straightness(traj, bootstrap=0, pairs=True, nulls=1).segments[0]
    return {
        "pairs": vars(segment.pairs),
        "samples": segment.samples,
        "null": {each.kind: each.score for each in segment.null},
        "spread": segment.spread,
    }


def report(lab: Lab, networks: Sequence[Cell]) -> None:
    """Measure networks, the last epoch first; write the tables and figures of the README."""
    settings = lab.settings
    pools = settings["pools"]
    samples = {"samples": settings["samples"]}
    epochs = [{"epoch": epoch, **samples} for epoch in (None, *settings["curve"])]
    looks = [(pools[0], epoch) for epoch in (None, *settings["earlier"])]
    looks += [(pool, None) for pool in pools[1:]]
    more = {"samples": settings["samples_of_pairs"]}
    pairs = [{"pool": pool, "epoch": epoch, **more} for pool, epoch in looks]
    runs = _runs(lab.measure(path, _cells(networks, epochs)))
    if not runs:
        return
    lab.write("last epoch", at_the_end(runs))
    lab.write("effects", effects(runs))
    lab.write("training", over_training(runs))
    lab.write("scores", scores(runs))
    lab.write("departures", departures(runs))
    draw_training(runs).savefig(lab.figure("training.png"))
    matrices = lab.measure(optimality, _cells(networks, pairs))
    if not matrices:
        return
    lab.write("optimality", correlation(matrices))
    draw_correlation(matrices, pools[0]).savefig(lab.figure("optimality.png"))


def _cells(networks: Sequence[Cell], looks: Sequence[Cell]) -> list[Cell]:
    """Return a cell for each look (epoch, pool) and network; leave out epochs past a run's end."""
    return [
        {**cell, **look}
        for look in looks
        for cell in networks
        if look["epoch"] is None or look["epoch"] < recipes.epochs_of(cell)
    ]


def _runs(found: Sequence[Result]) -> list[Result]:
    """Combine the epochs of each network; leave out networks without their last epoch."""
    runs = []
    for group in by(found, *KIND, "seed").values():
        if any(result["cell"]["epoch"] is None for result in group):
            rows = sorted((result["row"] for result in group), key=lambda row: row["epoch"])
            runs.append({**group[0], "rows": rows})
    return runs


# --- tables -----------------------------------------------------------------------------------


def _row(key: tuple) -> list[str]:
    data, arch, decay, decayed = key[:4]
    return [data, NETWORKS[arch], f"{decay:g}{'' if decayed == 'all' else ', exempt'}"]


def _last(group: Sequence[Result]) -> list[dict[str, Any]]:
    return [result["rows"][-1] for result in group]


def _between(row: dict[str, Any]) -> float:
    """Return 0 for a straight path, 1 for one as long as orthogonal steps of the same lengths."""
    most = row["sqrt_moving_blocks"]
    return (row["length_ratio"] - 1) / (most - 1) if most > 1 else np.nan


def at_the_end(results: Sequence[Result]) -> str:
    """Tabulate straightness at the last epoch."""
    names = {
        "length_ratio": "length ratio",
        "centred length_ratio": "centred",
        "sqrt_moving_blocks": "√B",
        "action_ratio": "action ratio",
        "turning_angle": "turning angle",
        "nc1": "NC1",
    }
    head = ["data", "network", "weight decay", "seeds", "accuracy", *names]
    head = [names.get(name, name) for name in head]
    head.insert(8, "between 1 and √B")
    rows = []
    for key, group in by(results, *KIND).items():
        last = _last(group)
        cells = [spread([row[name] for row in last]) for name in names]
        cells.insert(3, spread([_between(row) for row in last], ".2f"))
        accuracy = min(result["accuracy"] for result in group)
        digits = 3 if accuracy == 1 else 4  # 0.9998 is not 1
        rows.append([*_row(key), len(group), f"{accuracy:.{digits}f}", *cells])
    return table(head, rows)


def scores(results: Sequence[Result]) -> str:
    """Tabulate the OT score, its lower bound, and the shortest and longest step of a block."""
    names = {
        "ot_score": "OT score",
        "ot_bound": "its bound",
        "ot_score_centred": "centred",
        "spread_ratio": "spread ratio",
        "shift_share": "share of shift",
        "least_step": "least block",
        "largest_step": "largest block",
        "gap": "interpolation gap",
    }
    rows = [
        [*_row(key), *(spread([row[name] for row in _last(group)]) for name in names)]
        for key, group in by(results, *KIND).items()
    ]
    return table(["data", "network", "weight decay", *names.values()], rows)


def over_training(results: Sequence[Result]) -> str:
    """Tabulate the length ratio over the epochs; compare its last change with the seeds' range."""
    epochs = sorted({row["epoch"] for result in results for row in result["rows"]})
    head = ["data", "network", "weight decay", "accuracy 1 since"]
    rows = []
    for key, group in by(results, *KIND).items():
        found = {e: [_at(result, e) for result in group] for e in epochs}
        values = [spread(v) if any(x is not None for x in v) else "" for v in found.values()]
        since = ", ".join(str(result["terminal_epoch"] or "never") for result in group)
        rows.append([*_row(key), since, *values, settled(group)])
    heads = [f"epoch {e}" for e in epochs]
    return table([*head, *heads, "change in the last quarter / range over seeds"], rows)


def _at(result: Result, epoch: int, name: str = "length_ratio") -> float | None:
    return next((row[name] for row in result["rows"] if row["epoch"] == epoch), None)


def settled(group: Sequence[Result]) -> str:
    """Return the mean |change| of the length ratio over the last quarter, and its seeds' range."""
    changes = []
    for result in group:
        *earlier, last = result["rows"]
        near = [row for row in earlier if 0.6 <= row["epoch"] / last["epoch"] <= 0.8]
        if near:
            before = min(near, key=lambda row: abs(row["epoch"] - 0.75 * last["epoch"]))
            changes.append(abs(last["length_ratio"] - before["length_ratio"]))
    ends = [row["length_ratio"] for row in _last(group)]
    change = f"{np.mean(changes):.2g}" if changes else "not measured"
    return f"{change} / {max(ends) - min(ends):.2g}" if len(ends) > 1 else f"{change} / one seed"


def departures(results: Sequence[Result]) -> str:
    """Tabulate the runs whose training accuracy reached 1 and later fell below it."""
    left = []
    for result in results:
        cell, first, below = result["cell"], result["first"], result["last_below"]
        if first is not None and below is not None and below > first:
            kind = _row(tuple(cell[name] for name in KIND))
            left.append([*kind, cell["seed"], first, below, result["terminal_epoch"] or "never"])
    if not left:
        return f"None of {len(results)} runs, evaluated every 4 epochs."
    head = ["data", "network", "weight decay", "seed"]
    head += ["accuracy 1 in epoch", "last evaluated epoch below 1", "1 since"]
    return f"{len(left)} of {len(results)} runs, evaluated every 4 epochs:\n\n{table(head, left)}"


def effects(results: Sequence[Result]) -> str:
    """Tabulate the effects of decay and of the shortcut at the last epoch, paired by seed."""
    value = {tuple(r["cell"][k] for k in (*KIND, "seed")): r["rows"][-1] for r in results}
    kinds = sorted({key[2:4] for key in value})
    rows = []
    for data in dict.fromkeys(key[0] for key in value):
        pairs = [("plain - residual", ("isoplain", *k), ("isoresnet", *k)) for k in kinds]
        pairs += [
            # Without decay, it makes no difference which weights would decay.
            ("no decay - decay", (arch, 0.0, k[1] if (0.0, k[1]) in kinds else "all"), (arch, *k))
            for arch in NETWORKS
            for k in kinds
            if k[0]
        ]
        for name, a, b in pairs:
            both = sorted(
                {k[-1] for k in value if k[:-1] == (data, *a)}
                & {k[-1] for k in value if k[:-1] == (data, *b)}
            )
            if both:
                cells = []
                for measure in ("length_ratio", "centred length_ratio", "line_shape_ratio"):
                    gaps = [value[data, *a, s][measure] - value[data, *b, s][measure] for s in both]
                    _, low, high = mean_interval(gaps)
                    shown = "yes" if low > 0 else "no" if high < 0 else "not shown"
                    shown = shown if len(both) >= 3 else "too few seeds"
                    cells.append(f"{spread(gaps)} ({shown})")
                _, network, decay = _row((data, *b))
                place = f"decay {decay}" if name.startswith("plain") else f"{network}, {decay}"
                rows.append([data, name, place, len(both), *cells])
    head = ["data", "difference", "at", "seeds", "length ratio", "centred", "line-shape ratio"]
    return table(head, rows)


def optimal_from(result: Result) -> str:
    """Return the first layer from which on every map to the last is nearly optimal or undecided.

    The layer is in parentheses if its own map is undecided.
    """
    states = to_the_end(result)
    first = len(states)
    while first and states[first - 1] != "not":
        first -= 1
    if first == len(states):
        return "none"
    return str(first) if states[first] == "optimal" else f"({first})"


def to_the_end(result: Result) -> list[str]:
    """Return, for each layer, whether its map to the last is nearly optimal, not, or undecided."""
    pairs, margin = result["pairs"], max(1 - OPTIMAL, 1 / np.sqrt(result["samples"]))
    states = []
    for low, high, null in zip(
        *([row[-1] for row in pairs[name][:-1]] for name in ("corr_low", "corr_high", "null")),
        strict=True,
    ):
        if low is None or low < OPTIMAL:
            states.append("not" if low is not None and high < OPTIMAL else "undecided")
        else:
            states.append("optimal" if null is not None and low > null + margin else "undecided")
    return states


def correlation(results: Sequence[Result]) -> str:
    """Tabulate correlation scores from some layers to the last, with the highest null scores."""
    rows = []
    groups = by(results, *KIND, "pool", "epoch")
    depth = max(len(result["pairs"]["layers"]) for result in results) - 1
    layers = sorted({0, 1, 2, depth // 2, depth - 1})
    for key, group in groups.items():
        cells = []
        for layer in layers:
            own = [r["pairs"]["corr_score"][layer][-1] for r in group]
            null = [r["pairs"]["null"][layer][-1] for r in group]
            cells.append(f"{_range(own)} / {_range(null)}")
        first = ", ".join(optimal_from(r) for r in group)
        epoch = "last" if key[5] is None else key[5]
        rows.append([*_row(key), key[4], epoch, *cells, first])
    head = ["data", "network", "weight decay", "pool", "epoch"]
    return table([*head, *(f"from {k}: own / null" for k in layers), "nearly optimal from"], rows)


def _range(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "undefined"
    low, high = (f"{v:.2f}" for v in (min(known), max(known)))
    return low if low == high else f"{low} to {high}"


# --- figures ----------------------------------------------------------------------------------


def draw_training(results: Sequence[Result]) -> Figure:
    """Draw the length ratio over the epochs, one line per decay; dotted lines are sqrt(B)."""
    data = list(dict.fromkeys(result["cell"]["data"] for result in results))
    figure = Figure(figsize=(7.2, 2.7 * len(data)), layout="constrained", dpi=160)
    axes = figure.subplots(len(data), 2, squeeze=False)
    for (name, arch, decay, decayed), group in by(results, *KIND).items():
        ax = axes[data.index(name), int(arch == "isoplain")]
        epochs = sorted({row["epoch"] for result in group for row in result["rows"]})
        found = [[v for r in group if (v := _at(r, e)) is not None] for e in epochs]
        orthogonal = [
            np.mean([v for r in group if (v := _at(r, e, "sqrt_moving_blocks")) is not None])
            for e in epochs
        ]
        means = np.array([np.mean(values) for values in found])
        ends = np.array([[min(values), max(values)] for values in found])
        colour, marker = LOOK.get(decay, ("#666666", "D"))
        bars = abs(ends.T - means)
        exempt = decayed != "all"
        drawn = {"color": colour, "marker": marker, "ms": 4, "lw": 1.2, "capsize": 2}
        drawn["mfc"] = "white" if exempt else colour
        label = f"decay {decay:g}{', exempt' if exempt else ''}"
        ax.errorbar(epochs, means, yerr=bars, label=label, **drawn)
        ax.plot(epochs, orthogonal, color=colour, lw=0.8, ls=":")
        ax.set_xscale("symlog", base=2, linthresh=1)
        shown: list[int] = []
        for e in reversed(epochs):  # labels that do not overlap
            if not shown or 2 * e <= shown[-1]:
                shown.append(e)
        ax.set_xticks(shown, [str(e) for e in shown])
        ax.set_yscale("log")
        ax.set_yticks([1, 1.5, 2, 3, 5, 10], ["1", "1.5", "2", "3", "5", "10"])
        ax.minorticks_off()
        ax.axhline(1, color="#666666", lw=0.8, ls="--")
        ax.set_title(f"{name}, {NETWORKS[arch]}", loc="left")
        ax.set_xlabel("epoch")
        ax.set_ylabel("length ratio")
    for row in axes:
        row[0].legend(frameon=False, fontsize=8)
        low = min(ax.get_ylim()[0] for ax in row)
        high = max(ax.get_ylim()[1] for ax in row)
        for ax in row:
            ax.set_ylim(low, high)
    return figure


def draw_correlation(results: Sequence[Result], pool: str) -> Figure:
    """Draw correlation scores from each layer to the last; dotted lines are null scores."""
    shown = [r for r in results if r["cell"]["pool"] == pool and r["cell"]["epoch"] is None]
    data = list(dict.fromkeys(result["cell"]["data"] for result in shown))
    figure = Figure(figsize=(7.2, 2.5 * max(len(data), 1)), layout="constrained", dpi=160)
    axes = figure.subplots(max(len(data), 1), 2, squeeze=False)
    for result in shown:
        cell, pairs = result["cell"], result["pairs"]
        ax = axes[data.index(cell["data"]), int(cell["arch"] == "isoplain")]
        colour, marker = LOOK.get(cell["weight_decay"], ("#666666", "D"))
        own = [row[-1] for row in pairs["corr_score"][:-1]]
        null = [row[-1] for row in pairs["null"][:-1]]
        ax.plot(range(len(own)), own, color=colour, marker=marker, ms=3, lw=1)
        ax.plot(range(len(own)), null, color=colour, lw=0.7, ls=":")
        ax.set_title(f"{cell['data']}, {NETWORKS[cell['arch']]}", loc="left")
        ax.set_xlabel("from the output of block")
        ax.set_ylabel("correlation score")
        ax.set_ylim(-0.5, 1.05)
    return figure

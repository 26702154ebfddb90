"""Tables of experiment 05."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from claims import AUTHORS_CLAIMS, Claim, Result, collapsed, first_half, tau
from lab import by, mean_interval, spread, table


def views_of(results: Sequence[Result]) -> list[Result]:
    """Return one entry per network and pooling; a vision transformer has two."""
    entries = []
    for result in results:
        for pool, view in result["views"].items():
            token = " (class token)" if pool == "cls" else ""
            cell = {**result["cell"], "seen": result["cell"]["arch"] + token}
            entries.append({**result, "cell": cell, "view": view})
    return entries


SETTING = ("seen", "activation", "loss", "data")


def held(claim: Claim, views: Sequence[Result]) -> tuple[int, int]:
    """Return the number of settings in which a claim holds, and in which it is defined.

    If a setting has several seeds, the majority of them decides.
    """
    holding = defined = 0
    for group in by(views, *SETTING).values():
        verdicts = [k for k in (claim(entry["view"]) for entry in group) if k is not None]
        defined += bool(verdicts)
        holding += sum(verdicts) > len(verdicts) / 2
    return holding, defined


def falls_over_seeds(metric: str, views: Sequence[Result]) -> tuple[int, int]:
    """Count the settings in which tau's 95 % interval over seeds is negative, and all settings."""
    groups = by(views, *SETTING).values()
    taus = [[v["view"]["progress"][metric]["kendall_tau"] for v in group] for group in groups]
    return sum(bool(mean_interval(values)[2] < 0) for values in taus), len(taus)


Tally = Callable[[Sequence[Result]], tuple[int, int]]


def tallies(claims: Mapping[str, Claim]) -> dict[str, Tally]:
    """Return, for each claim, the function that counts the settings in which it holds."""
    return {name: partial(held, claim) for name, claim in claims.items()}


AUTHORS_TALLIES: dict[str, Tally] = {
    **tallies(AUTHORS_CLAIMS),
    "tau of NC1: interval over seeds below 0": partial(falls_over_seeds, "nc1"),
    "tau of the angle measure: interval over seeds below 0": partial(
        falls_over_seeds, "nc2_equiangle"
    ),
}


def counts(views: Sequence[Result], factor: str, ways: Mapping[str, Tally]) -> str:
    """Table with a row per claim and a column per value of one factor of the grid."""
    values = list(by(views, factor))
    rows = []
    for name, tally in ways.items():
        groups = [views, *(by(views, factor)[value] for value in values)]
        cells = ["{} of {}".format(*tally(group)) for group in groups]
        rows.append([name, f"**{cells[0]}**", *cells[1:]])
    return table(["claim", "all", *(value[0] for value in values)], rows)


def simple_first(views: Sequence[Result], datasets: Sequence[str]) -> str:
    """Tabulate I4 across data sets: how often is one learned at an earlier depth than another?

    This uses training images, and only settings in which the nearest class mean is accurate enough
    at some layer, for every seed.
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
            [first_half(v, "nc1", logarithms=True) for v in seeds],
            [v["learned"] for v in seeds],
            [v["test"]["learned"] for v in seeds],
        ]
        rows.append([f"{seen}, {data}", *(spread(values, ".2f") for values in measured)])
    head = ["network, data", "tau NC1", "tau NC2", "tau error", "tau angle"]
    head += ["90 % of NC1's fall", "first half, log NC1", "learned, train", "learned, test"]
    return table(head, rows)


def agreement(views: Sequence[Result], claims: Mapping[str, Claim]) -> str:
    """Table of the settings with several seeds: in how many do all seeds agree on a claim?"""
    rows = []
    for name, claim in claims.items():
        verdicts = [
            [known for entry in group if (known := claim(entry["view"])) is not None]
            for group in by(views, *SETTING).values()
        ]
        several = [seeds for seeds in verdicts if len(seeds) > 1]
        alike = [seeds for seeds in several if len(set(seeds)) == 1]
        holding = sum(seeds[0] for seeds in alike)
        rows.append([name, f"{len(alike)} of {len(several)}", holding, len(alike) - holding])
    return table(["claim", "all seeds agree", "that it holds", "that it does not"], rows)


def authors_variability(views: Sequence[Result]) -> str:
    """Tabulate the fall of the authors' NC1 with depth, and from its start (I1, I2), by setting."""
    rows = []
    for (arch, data), group in by(views, "arch", "data").items():
        seeds = [entry["view"] for entry in group]
        rows.append(
            [
                f"{arch}, {data}",
                len(seeds),
                spread([v["layers"]["nc1"][0] for v in seeds]),
                spread([v["layers"]["nc1"][-1] for v in seeds]),
                spread([v["progress"]["nc1"]["kendall_tau"] for v in seeds], ".2f"),
                _holding(seeds, AUTHORS_CLAIMS["NC1 falls at every layer"]),
                spread([collapsed(v) for v in seeds], ".2f"),
                spread([first_half(v, "nc1", logarithms=False) for v in seeds], ".2f"),
                spread([first_half(v, "nc1", logarithms=True) for v in seeds], ".2f"),
            ]
        )
    head = ["network, data", "seeds", "NC1, first layer", "NC1, last layer", "tau NC1"]
    head += ["falls at every layer", "inner layers under half of their start"]
    return table([*head, "first half, NC1", "first half, log NC1"], rows)


def authors_means(views: Sequence[Result]) -> str:
    """Tabulate the geometry of class means by depth (I3), and the depth of learning (I4)."""
    rows = []
    for (arch, data), group in by(views, "arch", "data").items():
        seeds = [entry["view"] for entry in group]
        rows.append(
            [
                f"{arch}, {data}",
                *(spread([v["layers"]["nc2_equiangle"][k] for v in seeds]) for k in (0, -1)),
                spread([v["progress"]["nc2_equiangle"]["kendall_tau"] for v in seeds], ".2f"),
                _holding(seeds, AUTHORS_CLAIMS["I3: the angle measure falls at every layer"]),
                *(spread([v["layers"]["nc2_equinorm"][k] for v in seeds]) for k in (0, -1)),
                spread([v["progress"]["nc2_equinorm"]["kendall_tau"] for v in seeds], ".2f"),
                spread([v["learned"] for v in seeds], ".2f"),
            ]
        )
    head = [
        "network, data",
        "angle measure, first layer",
        "last layer",
        "tau",
        "falls at every layer",
    ]
    head += ["spread of norms, first layer", "last layer", "tau", "learned"]
    return table(head, rows)


def _holding(seeds: Sequence[Result], claim: Claim) -> str:
    return f"{sum(claim(view) is True for view in seeds)} of {len(seeds)}"


def untrained(results: Sequence[Result]) -> str:
    """List the networks below training accuracy 0.99, which the claims do not cover."""
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

"""Several analyses side by side: over epochs of one training, or network beside network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from ..errors import ArgumentError
from .depth import METRICS, measured_metric
from .paths import RATIOS, segment_look
from .plot import Plot, Row
from .style import (
    MEASURED,
    REFERENCE,
    as_record,
    legend,
    legend_below,
    log_where_positive,
    new_axes,
    new_figure,
    nothing_to_show,
    number,
    numbers,
    resolved,
    segment_name,
    short,
    styled,
    thinned,
)

OVER: dict[str, str] = {**RATIOS, "ot_score": "OT score, end to end"}
"""Figures of a segment that `over` draws, and their labels."""

ENDS: dict[str, str] = {
    "accuracy": "Accuracy",
    "nc1": "NC1 at the last layer",
    "nc2_etf": "NC2: distance to simplex ETF, last layer",
    "tau": "Kendall's τ of NC1 over depth",
}
"""Figures of a whole network that `over` draws."""


def positions(series: Mapping[str, Any]) -> np.ndarray:
    """Where each analysis stands on the axis: its epoch, or its place in the list."""
    rows = series["analyses"]
    if series["axis"] == "epoch":
        return numbers([row["provenance"].get("epoch") for row in rows])
    return np.arange(len(rows), dtype=np.float64)


@styled
def over(series: Any, figure: str = "length_ratio", ax: Axes | None = None) -> Axes:
    """A figure of every analysis over the epochs of training, or network beside network.

    Segments are told apart by colour and marker; bars are 95 % intervals. OT scores of low
    resolution are hollow. Epochs lie on a logarithmic axis, the initialisation left of it.

    Parameters
    ----------
    series : dict or Series
    figure : str
        A key of `OVER` (a line a segment) or of `ENDS` (one line).
    """
    series = as_record(series)
    if figure not in OVER and figure not in ENDS:
        raise ArgumentError(f"no figure {figure!r}; choose from {', '.join((*OVER, *ENDS))}.")
    ax = new_axes(ax)
    rows, at = series["analyses"], positions(series)
    line = series["axis"] == "epoch"
    if figure in ENDS:
        values = numbers([_end(row, figure) for row in rows])
        drawn = [values]
        ax.plot(at, values, color=MEASURED, marker="o", ls="-" if line else "none", ms=4)
    else:
        count = max((len(row["segments"]) for row in rows), default=0)
        if not count:
            return nothing_to_show(ax, "These analyses have no segments.")
        drawn = []
        for i in range(count):
            drawn += _segment(ax, rows, at, i, count, figure, line)
        ax.axhline(1.0, color=REFERENCE, lw=0.9, ls=(0, (4, 3)), zorder=1)
        legend_below(ax, *segments_in(series))
    _axis(ax, series, at)
    if figure not in ("accuracy", "ot_score", "tau"):
        log_where_positive(ax, *drawn)
    ax.set_title({**OVER, **ENDS}[figure])
    return ax


def _segment(
    ax: Axes,
    rows: Sequence[Mapping[str, Any]],
    at: np.ndarray,
    index: int,
    count: int,
    figure: str,
    line: bool,
) -> list[np.ndarray]:
    found = [row["segments"][index] if index < len(row["segments"]) else {} for row in rows]
    values = numbers([segment.get(figure) for segment in found])
    ends = [numbers((segment.get("intervals") or {}).get(figure)) for segment in found]
    low, high = (np.array([e[k] if len(e) == 2 else np.nan for e in ends]) for k in (0, 1))
    look: dict[str, Any] = segment_look(index)
    if not line:  # side by side where nothing connects them
        at = at + np.linspace(-0.16, 0.16, count)[index] if count > 1 else at
    ax.vlines(at, low, high, color=look["color"], lw=1.2, alpha=0.7)
    ax.plot(at, values, ls="-" if line else "none", lw=1.1, color=look["color"], zorder=2)
    clear = np.array([figure != "ot_score" or resolved(segment) for segment in found])
    for shown, face in ((clear, look["color"]), (~clear, "white")):
        ax.plot(at[shown], values[shown], ls="none", ms=4, mfc=face, mew=0.9, zorder=3, **look)
    return [values, low, high]


def _end(row: Mapping[str, Any], figure: str) -> Any:
    if figure == "accuracy":
        return row.get("accuracy")
    if figure == "tau":
        return ((row.get("progress") or {}).get("nc1") or {}).get("kendall_tau")
    layers = row.get("layers") or [{}]
    return (layers[-1].get("collapse") or {}).get(figure)


def _axis(ax: Axes, series: Mapping[str, Any], at: np.ndarray) -> None:
    if series["axis"] != "epoch":
        names = [short(row["name"], 18) for row in series["analyses"]]
        ax.set_xticks(at, names, rotation=90 if len(names) > 4 else 0)
        ax.set_xlim(-0.5, len(names) - 0.5)
        return
    ax.set_xscale("symlog", base=2, linthresh=1.0, linscale=0.6)
    kept = [at[i] for i in thinned(len(at), 9)]
    ax.xaxis.set_major_locator(FixedLocator(kept))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda epoch, _: f"{epoch:g}")
    ax.set_xlim(min(0.0, at.min()) - 0.15, at.max() * 1.12)
    ax.set_xlabel("epoch")


@styled
def profiles(series: Any, metric: str = "nc1", ax: Axes | None = None) -> Axes:
    """A collapse metric over depth, a line an analysis: dark is late where they are epochs.

    Networks of different depth share an axis from 0, what enters the first block, to 1.
    """
    series = as_record(series)
    if metric not in METRICS:
        raise ArgumentError(f"no collapse metric {metric!r}; choose from {', '.join(METRICS)}.")
    ax = new_axes(ax)
    rows = series["analyses"]
    drawn = []
    for row, look in zip(rows, profile_looks(series), strict=True):
        layers = row.get("layers") or []
        staged = np.array([layer.get("stage") is not None for layer in layers], bool)
        values = measured_metric(row, metric)[staged]
        if len(values):
            ax.plot(np.linspace(0, 1, len(values)), values, ms=2.6, **look)
            drawn.append(values)
    if not drawn:
        return nothing_to_show(ax, "These analyses have no layers.")
    log_where_positive(ax, *drawn)
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel("depth (0: before the first block, 1: last layer)")
    ax.set_title(METRICS[metric])
    legend_below(ax, *series_handles(series))
    return ax


def profile_looks(series: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line's look for each analysis: in order of time, or told apart."""
    count = len(series["analyses"])
    if series["axis"] == "epoch":
        shades = mpl.colormaps["viridis_r"](np.linspace(0.08, 1.0, count))
        return [{"color": tuple(shade), "marker": "o", "lw": 1.2} for shade in shades]
    return [{**segment_look(i), "lw": 1.2} for i in range(count)]


def series_handles(series: Mapping[str, Any]) -> tuple[list[Line2D], list[str]]:
    """What identifies the lines of `profiles`; of many epochs, some."""
    rows, looks = series["analyses"], profile_looks(series)
    chosen = thinned(len(rows), 8 if series["axis"] == "epoch" else 12)
    by_epoch = series["axis"] == "epoch"
    names = [
        f"epoch {rows[i]['provenance']['epoch']}" if by_epoch else short(rows[i]["name"], 26)
        for i in chosen
    ]
    return [Line2D([], [], ms=3.5, **looks[i]) for i in chosen], names


def segments_in(series: Mapping[str, Any]) -> tuple[list[Line2D], list[str]]:
    """What identifies the segments of `over`: those of the analysis that has most."""
    most = max((row["segments"] for row in series["analyses"]), key=len)
    handles = [Line2D([], [], ms=4, lw=1.1, **segment_look(i)) for i in range(len(most))]
    return handles, [segment_name(segment, i) for i, segment in enumerate(most)]


def series_rows(series: Any) -> list[Row]:
    """A row an analysis and segment: what `over` draws."""
    series = as_record(series)
    rows = []
    for analysis in series["analyses"]:
        whole = {key: _end(analysis, key) for key in ENDS}
        for i, segment in enumerate(analysis["segments"] or [{}]):
            row: dict[str, Any] = {
                "name": analysis["name"],
                "epoch": analysis["provenance"].get("epoch"),
                "segment": segment_name(segment, i),
            }
            for key in OVER:
                ends = numbers((segment.get("intervals") or {}).get(key))
                row[key] = segment.get(key)
                row[f"{key}_low"], row[f"{key}_high"] = (
                    [float(end) for end in ends] if len(ends) == 2 else (None, None)
                )
            row["resolution"] = segment.get("resolution")
            row["length_ratio_centred"] = (segment.get("centred") or {}).get("length_ratio")
            row["sqrt_moving_blocks"] = segment.get("sqrt_moving_blocks")
            row["corr_score"] = (segment.get("corr_score") or [None])[0]
            row["power"] = segment.get("power")
            rows.append(
                {**row, **{k: None if np.isnan(number(v)) else v for k, v in whole.items()}}
            )
    return rows


_PANELS = ("length_ratio", "line_shape_ratio", "action_ratio", "ot_score", "nc1", "accuracy")
_PROFILES = ("nc1", "ncc_error", "nc2_etf", "effective_rank")


def series_plots(series: Mapping[str, Any]) -> list[Plot]:
    """The figures of a series."""
    by_epoch = series["axis"] == "epoch"
    what = "over training" if by_epoch else "network beside network"
    count = len(series["analyses"])

    @styled
    def draw_over() -> Figure:
        figure = new_figure(7.2, 7.4)
        for name, ax in zip(_PANELS, figure.subplots(3, 2).flat, strict=True):
            over(series, name, ax)
        legend(figure, *segments_in(series), loc="outside lower center", ncols=2)
        return figure

    @styled
    def draw_profiles() -> Figure:
        figure = new_figure(7.2, 5.6)
        for metric, ax in zip(_PROFILES, figure.subplots(2, 2).flat, strict=True):
            profiles(series, metric, ax)
        legend(figure, *series_handles(series), loc="outside lower center", ncols=4)
        return figure

    def profile_rows() -> list[Row]:
        return [
            {
                "name": row["name"],
                "epoch": row["provenance"].get("epoch"),
                "layer": layer.get("name"),
                **{
                    k: v
                    for k, v in (layer.get("collapse") or {}).items()
                    if isinstance(v, int | float)
                },
            }
            for row in series["analyses"]
            for layer in row["layers"]
        ]

    return [
        Plot(
            "over",
            f"Straightness and collapse {what}",
            "Straightness of every segment with 95 % intervals (1 is a constant-speed geodesic; OT "
            "scores that the sample cannot tell are hollow), collapse at the last layer, accuracy."
            + (" Epochs on a logarithmic axis; 0 is the initialisation." if by_epoch else ""),
            f"Straightness, NC1 and accuracy of {count} analyses, {what}.",
            draw_over,
            lambda: series_rows(series),
        ),
        Plot(
            "profiles",
            f"Collapse over depth, {what}",
            "Each line is one analysis" + (", darker later." if by_epoch else "."),
            f"Collapse metrics over depth of {count} analyses.",
            draw_profiles,
            profile_rows,
        ),
    ]

"""The figure of a solved model: its geometry, objective, layers and starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..errors import ArgumentError
from ..results import Result
from ..storage.files import folder_name
from ..storage.ownership import owned
from ..text import percent
from .files import rendered
from .sources import as_mapping
from .style import (
    COLORS,
    INK,
    MARKERS,
    MEASURED,
    MUTED,
    REFERENCE,
    figure_of,
    legend,
    new_axes,
    new_figure,
    nothing_to_show,
    number,
    numbers,
    styled,
)

FLOOR = 1e-16  # smaller values are rounding errors, drawn at this value on logarithmic axes
MAX_ANNOTATED = 8  # largest number of classes for which every cosine is printed
TERMS = {
    "fit": "loss",
    "weight_decay": "weight decay",
    "feature_decay": "feature decay",
    "bias_decay": "bias decay",
    "transport": "transport",
}
LINES = {"nc1": "NC1", "nc2_etf": "NC2: to simplex ETF", "cdnv": "CDNV"}
DEEP = {"dnc1": "DNC1", "dnc2": "DNC2", "dnc3": "DNC3"}


@styled
def model(solution: Any) -> Figure:
    """Draw a solution of `wgeo.ufm`, or its record (``solution.json``), as one figure.

    The panels show the cosines of the class means and the terms of the objective. With several
    layers, they also show the collapse at each layer; with several starts, the objective of each.

    Examples
    --------
    >>> from wgeo import plots, ufm
    >>> solution = ufm.fit_ce([0, 1, 2] * 5, dim=4, weight_decay=1e-3, feature_decay=1e-3)
    >>> figure = plots.model(solution)
    >>> plots.save(figure, "model.png", dpi=100).name
    'model.png'
    """
    if isinstance(solution, Result):  # a record is drawn without torch
        from ..ufm import MUFMSolution, UFMSolution
        from ..ufm.record import record_of

        if isinstance(solution, UFMSolution | MUFMSolution):
            solution = record_of(solution)
    record = as_mapping(solution, of="solution")
    curve, values = record.get("curve") or [], record.get("values") or []
    lower = [name for name, data in (("layers", curve[1:]), ("starts", values[1:])) if data]
    figure = new_figure(7.2, 2.9 if not lower else 5.4)
    rows: list[Any] = [["means", "terms"]]
    if lower:
        rows.append(lower if len(lower) == 2 else lower * 2)
    panels = figure.subplot_mosaic(rows)
    draw = {
        "means": model_means,
        "terms": model_terms,
        "layers": model_layers,
        "starts": model_starts,
    }
    for name, ax in panels.items():
        draw[name](record, ax)
    return figure


@styled
def model_means(record: Any, ax: Axes | None = None) -> Axes:
    """Draw the cosines of the last layer's uncentered class means as a K x K matrix of colors."""
    record = as_mapping(record, of="solution")
    ax = new_axes(ax, 3.4, 3.2)
    cosines = (record.get("view") or {}).get("means") or []
    matrix = np.array([numbers(row) for row in cosines])
    K = len(matrix)
    ax.set_title("Cosines of the class means", pad=16)
    if not K or not np.isfinite(matrix).any():
        return nothing_to_show(ax, "The class means are zero.")
    simplex = f"simplex ETF: −1/(K−1) = {-1 / (K - 1):.3g}; ".replace("-", "−") if K > 1 else ""
    options: dict[str, Any] = {"fontsize": 7.5, "color": MUTED, "va": "bottom"}
    subtitle = ax.text(0, 1.02, f"{simplex}orthogonal frame: 0", transform=ax.transAxes, **options)
    subtitle.set_in_layout(False)  # otherwise the color bar moves to the end of the text
    image = ax.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
    bar = figure_of(ax).colorbar(image, ax=ax, shrink=0.9, ticks=[-1, 0, 1])
    bar.outline.set_visible(False)  # type: ignore[operator]
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(min(K, 10), integer=True))
    ax.set_xlabel("class")
    ax.spines[:].set_visible(False)
    if K <= MAX_ANNOTATED:
        for (i, j), value in np.ndenumerate(matrix):
            text = f"{value:z.2f}".replace("-", "−")
            color = "white" if abs(value) > 0.6 else INK
            shown = text if np.isfinite(value) else "–"
            ax.text(j, i, shown, ha="center", va="center", fontsize=6.5, color=color)
    return ax


@styled
def model_terms(record: Any, ax: Axes | None = None) -> Axes:
    record = as_mapping(record, of="solution")
    ax = new_axes(ax, 3.6, 2.4)
    terms = record.get("terms") or {}
    names = [name for name in terms if number(terms[name]) > 0 or name == "fit"]
    sizes = numbers([terms[name] for name in names])
    ax.set_title("Terms of the objective", pad=16)
    if not names:
        return nothing_to_show(ax, "This record has no terms of the objective.")
    total = number(record.get("objective"))
    ax.text(0, 1.02, f"sum: {total:.6g}", transform=ax.transAxes, fontsize=7.5, color=MUTED)
    at = np.arange(len(names))
    ax.barh(at, sizes, height=0.55, color=MEASURED)
    ax.set_yticks(at, [TERMS.get(name, name) for name in names])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlim(0, 1.3 * max(float(np.nanmax(sizes)), 1e-300))
    ax.xaxis.set_major_locator(MaxNLocator(4))
    options: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 7.5}
    for y, size in zip(at, sizes, strict=True):
        share = f" ({percent(size / total, 0)})" if total > 0 else ""
        ax.annotate(f"{size:.3g}{share}", (size, y), xytext=(3, 0), **options)
    return ax


@styled
def model_layers(record: Any, ax: Axes | None = None) -> Axes:
    """Draw collapse by layer: DNC1 to DNC3 for a UFM; NC1, NC2 and CDNV for MUFM."""
    record = as_mapping(record, of="solution")
    ax = new_axes(ax)
    curve = record.get("curve") or []
    weights = bool(curve) and "deep" in curve[0]  # a row per weight matrix; MUFM: per layer
    part = "deep" if weights else "collapse"
    names = DEEP if weights else LINES
    metrics = {name: numbers([layer[part][key] for layer in curve]) for key, name in names.items()}
    lines = {name: values for name, values in metrics.items() if np.isfinite(values).any()}
    ax.set_title("Collapse at every layer", pad=16)
    if not lines:
        return nothing_to_show(ax, "No metric is defined at any layer.")
    handles = []
    for values, color, marker in zip(lines.values(), COLORS, MARKERS, strict=False):
        handles += ax.plot(range(len(curve)), floored(values), color=color, marker=marker)
    _log_from_floor(ax, *lines.values())
    if any((values < FLOOR).any() for values in lines.values()):
        note = "values that are zero up to rounding are drawn at the edge"
        ax.text(0, 1.02, note, transform=ax.transAxes, fontsize=7.5, color=MUTED)
    if weights:
        ax.set_xticks(range(len(curve)), [f"W{i}" for i in range(1, len(curve) + 1)])
        ax.set_xlabel("weight matrix and its input features")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        ax.set_xlabel("layer")
    legend(ax, handles, list(lines), loc="best")
    return ax


@styled
def model_starts(record: Any, ax: Axes | None = None) -> Axes:
    """Draw the final objective of every start, minus the lower bound or the lowest objective."""
    record = as_mapping(record, of="solution")
    ax = new_axes(ax, 3.6, 2.6)
    ax.set_title("Final objective of every start")
    values = np.sort(numbers(record.get("values") or []))
    if not values.size:
        return nothing_to_show(ax, "This solution has no starts.")
    bound = number((record.get("certificate") or {}).get("lower_bound"))
    has_bound = bool(np.isfinite(bound))
    above = values - (bound if has_bound else values.min())
    rank = np.arange(1, len(values) + 1)
    ax.plot(rank, floored(above), ls="none", marker="o", ms=3, color=MEASURED)
    if np.ptp(above) == 0 and above[0] == 0:
        ax.axhline(FLOOR, color=REFERENCE, lw=0.7)
    _log_from_floor(ax, above)
    ax.set_xlabel("start, best first")
    ax.set_ylabel("objective − " + ("lower bound" if has_bound else "lowest"))
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    return ax


def floored(series: np.ndarray) -> np.ndarray:
    """Return values for a logarithmic axis: at least `FLOOR`, or NaN if undefined."""
    return np.where(np.isfinite(series), np.maximum(series, FLOOR), np.nan)


def _log_from_floor(ax: Axes, *series: np.ndarray) -> None:
    values = floored(np.concatenate(series))
    low, top = float(np.nanmin(values)), float(np.nanmax(values))
    ax.set_yscale("log")
    ax.set_ylim(low / 3, 3 * max(top, 10 * low))


def write_model(record: Mapping[str, Any], folder: str | Path, stem: str = "model") -> list[Path]:
    """Write the figure of a solution's record to a folder, as PNG and as SVG.

    Raise `ArgumentError` if `stem` is not a plain file name, and `RecordError` if the files cannot
    be written or would replace files that wgeo did not write.
    """
    if not stem or folder_name(stem) != stem:
        raise ArgumentError(f"stem must be a plain file name, not {stem!r}.")
    with owned(folder) as owner:
        owner.require_writable(f"{stem}.png", f"{stem}.svg")
        return owner.write(rendered(model(record), stem, ("png", "svg")))

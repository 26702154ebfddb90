"""The figures of a record, and their files: PNG, SVG and PDF, with the plotted numbers as CSV."""

from __future__ import annotations

import base64
import csv
import io
import os
import warnings
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ..errors import ArgumentError
from ..runtime.progress import track
from ..storage.files import writable, write_atomic
from ..storage.ownership import owned, require_writable
from ..text import printable
from .block_transport import block_distances_plot, distances_plot, gradient_maps_plot
from .classes import class_means_plot, class_variability_plot
from .depth import collapse_plot, separation_law_plot
from .matrices import alignment_plot, pairs_plots
from .paths import sample_sizes_plot, straightness_plot
from .predictions import model_errors_plot
from .series import over_plot, profiles_plot
from .sources import Plot, Row, as_record, as_series, is_series
from .style import figure_of, styled

# Names of the files of an analysis and of a series, without extensions: glob patterns
STEMS = (
    *("collapse", "class-variability", "models", "distances", "straightness", "class-means-[0-9]*"),
    *("sample-sizes", "gradient-maps", "correlation-pairs", "distance-pairs"),
    *("separation-law", "alignment"),
)
SERIES_STEMS = ("over", "profiles", "block-distances", "class-means-training")
_DEFAULT_ENDINGS = ("png", "svg", "csv")


def catalog(source: Any) -> list[Plot]:
    """Return the figures that can be drawn from a record, in reading order."""
    plots: list[Plot | None]
    if is_series(source):
        series = as_series(source)
        plots = [
            over_plot(series),
            profiles_plot(series),
            block_distances_plot(series),
            class_means_plot(series),
        ]
    else:
        record = as_record(source)
        plots = [
            collapse_plot(record),
            class_variability_plot(record),
            model_errors_plot(record),
            distances_plot(record),
            straightness_plot(record),
            *pairs_plots(record),
            sample_sizes_plot(record),
            gradient_maps_plot(record),
            separation_law_plot(record),
            alignment_plot(record),
            *(class_means_plot(record, i) for i in range(len(record.segments))),
        ]
    return [plot for plot in plots if plot is not None]


def file_names(plots: Iterable[Plot], endings: Sequence[str] = _DEFAULT_ENDINGS) -> list[str]:
    return [f"{plot.stem}.{ending}" for plot in plots for ending in endings]


def require_figures_writable(folder: str | os.PathLike[str], *, series: bool = False) -> None:
    """Raise `RecordError` if a file that wgeo did not write has the name of any possible figure."""
    stems = SERIES_STEMS if series else STEMS
    require_writable(folder, *(f"{stem}.{ending}" for stem in stems for ending in _DEFAULT_ENDINGS))


def current_files(record: Any, folder: Path, record_file: Path) -> list[Path] | None:
    """Return the files of a record's figures; None if one is missing, a link, or out of date."""
    written = record_file.stat().st_mtime_ns
    files = [folder / name for name in file_names(catalog(record))]
    regular = all(file.is_file() and not file.is_symlink() for file in files)
    return files if regular and all(f.stat().st_mtime_ns >= written for f in files) else None


def figures(
    source: Any, out_dir: str | Path, *, endings: Sequence[str] = _DEFAULT_ENDINGS
) -> list[Path]:
    """Write every figure of a record to `out_dir` as PNG and SVG, and its data as CSV.

    Every file is written completely or not at all. Figures that an earlier call wrote in these
    formats are removed if this record does not have them. Files that wgeo did not write are never
    changed.

    Parameters
    ----------
    source : Analysis, Series or dict
    out_dir : path
    endings : sequence of str
        File extensions, which determine the formats: ``png``, ``svg``, ``pdf``, ``csv``.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    ArgumentError
        An unknown file extension.
    RecordError
        The folder cannot be written, or a file that wgeo did not write has the name of a figure;
        then nothing is drawn.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(8, 3))
    >>> traj = wgeo.Trajectory.from_arrays([x, 2 * x], np.arange(8) % 2)
    >>> result = wgeo.analysis.analyze_trajectory(traj, bootstrap=0, mufm=False)
    >>> files = wgeo.plots.figures(result, "figures", endings=["csv"])
    >>> "collapse.csv" in [path.name for path in files]
    True
    """
    if unknown := sorted(set(endings) - set(ENDINGS)):
        raise ArgumentError(
            f"figures cannot be written as {', '.join(unknown)}; choose from {', '.join(ENDINGS)}."
        )
    plots = catalog(source)
    written: list[Path] = []
    with owned(out_dir) as owner:
        owner.require_writable(*file_names(plots, endings))
        for plot in track(plots, "drawing figures"):
            written += owner.write(_files(plot, endings))
        current = {path.name for path in written}
        patterns = [f"{stem}.{ending}" for stem in (*STEMS, *SERIES_STEMS) for ending in endings]
        stale = {
            name
            for name in owner.listed()
            if any(fnmatchcase(name, pattern) for pattern in patterns)
        }
        owner.remove(*(stale - current))
    return written


def _files(plot: Plot, endings: Sequence[str]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    if pictures := [ending for ending in _CANVASES if ending in endings]:
        with warnings.catch_warnings():
            # Characters that the font lacks are drawn as boxes, without a warning.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            files |= rendered(plot.draw(), plot.stem, pictures)
    if "csv" in endings:
        files[f"{plot.stem}.csv"] = as_csv(plot.rows())
    return files


@styled
def rendered(figure: Figure, stem: str, endings: Sequence[str]) -> dict[str, bytes]:
    """Return the contents of a figure's files by name, with one layout for all."""
    if layout := figure.get_layout_engine():
        layout.execute(figure)  # not the whole drawing, which is repeated for each file anyway
    figure.set_layout_engine("none")
    return {f"{stem}.{ending}": _picture(figure, ending) for ending in endings}


def as_csv(rows: Iterable[Row]) -> bytes:
    """Return rows as CSV in UTF-8, with numbers in full precision; undefined values are empty.

    Unprintable characters are escaped as in Python, because a terminal would interpret them.
    """
    rows = [{_escaped(key): _escaped(value) for key, value in row.items()} for row in rows]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "replace")


def _escaped(value: Any) -> Any:
    return printable(value, None) if isinstance(value, str) else value


# The canvases are used directly: savefig would draw every figure a second time for its layout.
# Dates and versions are left out, so that equal records give equal files.
_CANVASES: dict[str, tuple[type[FigureCanvasBase], dict[str, None]]] = {
    "png": (FigureCanvasAgg, {"Software": None}),
    "svg": (FigureCanvasSVG, {"Date": None, "Creator": None}),
    "pdf": (FigureCanvasPdf, {"CreationDate": None, "Creator": None, "Producer": None}),
}
ENDINGS = (*_CANVASES, "csv")


def _picture(figure: Figure, ending: str) -> bytes:
    """Return the contents of a figure's file."""
    canvas, metadata = _CANVASES[ending]
    data = io.BytesIO()
    getattr(canvas(figure), f"print_{ending}")(data, metadata=metadata)
    return data.getvalue()


@styled
def data_uri(ax: Axes) -> str:
    """Return the figure of a panel as the ``src`` of an HTML image."""
    content = base64.b64encode(_picture(figure_of(ax), "svg"))
    return f"data:image/svg+xml;base64,{content.decode()}"


@styled
def save(drawn: Axes | Figure, path: str | os.PathLike[str], *, dpi: int = 300) -> Path:
    """Write a figure to a file, for a paper or a slide.

    A PDF embeds its fonts (no Type 3 fonts) and an SVG contains text as outlines, so both look the
    same everywhere. Neither contains a date.

    Parameters
    ----------
    drawn : Axes or Figure
        The axes that a function of `wgeo.plots` returned, or their figure.
    path : path
        File name with the extension ``.pdf``, ``.svg`` or ``.png``.
    dpi : int
        Pixels per inch of a PNG. 300 is usual for print; 343 makes ``axes("slide")`` 1920 pixels
        wide.

    Returns
    -------
    Path

    Raises
    ------
    ArgumentError
        An unknown file extension.
    RecordError
        The file cannot be written.

    Examples
    --------
    >>> from wgeo import plots
    >>> ax = plots.axes("slide")
    >>> line = ax.plot([0, 1], [1, 0])
    >>> plots.save(ax, "slide.png", dpi=100).stat().st_size > 1000
    True
    """
    path = Path(path)
    ending = path.suffix.lower().removeprefix(".")
    if ending not in _CANVASES:
        raise ArgumentError(
            f"save writes .{', .'.join(_CANVASES)}; not {path.suffix or path.name}."
        )
    figure = drawn if isinstance(drawn, Figure) else figure_of(drawn)
    original_dpi, canvas = figure.dpi, figure.canvas
    try:
        figure.dpi = dpi if ending == "png" else 72
        figure.draw_without_rendering()
        write_atomic(writable(path.parent) / path.name, _picture(figure, ending))
    finally:
        figure.dpi = original_dpi
        figure.set_canvas(canvas)
    return path

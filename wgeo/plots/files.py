"""Files of figures: PNG, SVG, PDF, and the plotted numbers as CSV."""

from __future__ import annotations

import base64
import io
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ..errors import ArgumentError
from ..runtime.progress import track
from ..storage.files import writable, write_atomic
from ..storage.ownership import owned, require_writable
from .composed import catalogue
from .plot import Plot, as_csv
from .style import styled

STEMS = (
    *("collapse", "models", "distances", "straightness", "class-means-[0-9]*"),
    *("sample-sizes", "gradient-maps", "correlation-pairs"),
    *("separation-law", "alignment"),
)
SERIES_STEMS = ("over", "profiles", "class-means-training")
_PAGE = ("png", "svg", "csv")


def names_of(plots: Iterable[Plot], endings: Sequence[str] = _PAGE) -> list[str]:
    """Return the names of the files of figures."""
    return [f"{plot.stem}.{ending}" for plot in plots for ending in endings]


def claim_figures(folder: str | os.PathLike[str], *, series: bool = False) -> None:
    """Check that no file which wgeo did not write has the name of a figure.

    The names of all possible figures are checked, before it is known which ones a record will have.

    Raises
    ------
    RecordError
        The message names the file.
    """
    stems = SERIES_STEMS if series else STEMS
    require_writable(folder, *(f"{stem}.{ending}" for stem in stems for ending in _PAGE))


def drawn(record: Mapping[str, Any], folder: Path, source: Path) -> list[Path] | None:
    """Return the files of a record's figures if all are regular and not older than it, or None."""
    written = source.stat().st_mtime_ns
    files = [folder / name for name in names_of(catalogue(record))]
    regular = all(file.is_file() and not file.is_symlink() for file in files)
    return files if regular and all(f.stat().st_mtime_ns >= written for f in files) else None


def figures(source: Any, out_dir: str | Path, *, endings: Sequence[str] = _PAGE) -> list[Path]:
    """Write every figure of a record to `out_dir` as PNG and SVG, and its data as CSV.

    Each file is written under a temporary name and then renamed, so that no file is ever
    incomplete. Figures with these endings that an earlier call wrote and this one does not are
    removed; files that wgeo did not write are not touched.

    Parameters
    ----------
    source : Analysis, Series or dict
    out_dir : path
    endings : sequence of str
        Formats of each figure: ``png``, ``svg``, ``pdf``, ``csv``.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    ArgumentError
        An unknown ending.
    RecordError
        The folder cannot be written, or a file that wgeo did not write has the name of a figure;
        then nothing is drawn.
    """
    if unknown := sorted(set(endings) - set(ENDINGS)):
        raise ArgumentError(
            f"no figures as {', '.join(unknown)}; choose from {', '.join(ENDINGS)}."
        )
    plots = catalogue(source)
    written: list[Path] = []
    with owned(out_dir) as home:
        home.require_writable(*names_of(plots, endings))
        for plot in track(plots, "drawing figures"):
            written += home.write(_files(plot, endings))
        current = {path.name for path in written}
        patterns = [f"{stem}.{ending}" for stem in (*STEMS, *SERIES_STEMS) for ending in endings]
        stale = {
            name
            for name in home.listed()
            if any(fnmatchcase(name, pattern) for pattern in patterns)
        }
        home.remove(*(stale - current))
    return written


def _files(plot: Plot, endings: Sequence[str]) -> dict[str, bytes]:
    """Return the files of a figure: names and contents."""
    files: dict[str, bytes] = {}
    with warnings.catch_warnings():
        # Names of classes in a script that the font lacks are drawn as boxes, without a warning.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = plot.draw()
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the same layout for all files
        for ending in [ending for ending in _RENDER if ending in endings]:
            files[f"{plot.stem}.{ending}"] = _RENDER[ending](figure)
    if "csv" in endings:
        files[f"{plot.stem}.csv"] = as_csv(plot.rows())
    return files


# The canvases are used directly, without dates and versions, so that equal records give equal
# files; savefig would draw every figure a second time for its layout.


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    FigureCanvasAgg(figure).print_png(data, metadata={"Software": None})
    return data.getvalue()


@styled
def _svg(figure: Figure) -> bytes:
    data = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(data, metadata={"Date": None, "Creator": None})
    return data.getvalue()


def data_uri(ax: Axes) -> str:
    """Return the figure of a panel as the ``src`` of an image in HTML."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return f"data:image/svg+xml;base64,{base64.b64encode(_svg(figure)).decode()}"


@styled
def _pdf(figure: Figure) -> bytes:
    data = io.BytesIO()
    undated = {"CreationDate": None, "Creator": None, "Producer": None}
    FigureCanvasPdf(figure).print_pdf(data, metadata=undated)
    return data.getvalue()


_RENDER: dict[str, Callable[[Figure], bytes]] = {"png": _png, "svg": _svg, "pdf": _pdf}
ENDINGS = (*_RENDER, "csv")


@styled
def save(drawn: Axes | Figure, path: str | os.PathLike[str], *, dpi: int = 300) -> Path:
    """Write a figure to a file, for a paper or a slide.

    PDF embeds its fonts (no Type 3 fonts), SVG has text as outlines, so that both look the same
    everywhere; neither contains a date.

    Parameters
    ----------
    drawn : Axes or Figure
        The axes that a panel returned, or their figure.
    path : path
        File name that ends in ``.pdf``, ``.svg`` or ``.png``.
    dpi : int
        Resolution of a PNG: 300 is usual for print; a slide of `axes` at 343 is 1920 pixels wide.

    Returns
    -------
    Path

    Raises
    ------
    ArgumentError
        An unknown ending.
    RecordError
        The file cannot be written.
    """
    path = Path(path)
    ending = path.suffix.lower().removeprefix(".")
    if ending not in _RENDER:
        raise ArgumentError(f"save writes .{', .'.join(_RENDER)}; not {path.suffix or path.name}.")
    figure = drawn if isinstance(drawn, Figure) else drawn.get_figure(root=True)
    assert figure is not None
    original_dpi, canvas = figure.dpi, figure.canvas
    try:
        figure.dpi = dpi if ending == "png" else 72
        figure.draw_without_rendering()
        write_atomic(writable(path.parent) / path.name, _RENDER[ending](figure))
    finally:
        figure.dpi = original_dpi
        figure.set_canvas(canvas)
    return path

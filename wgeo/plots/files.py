"""Files of figures: PNG, SVG, PDF, and the numbers that a figure draws as CSV."""

from __future__ import annotations

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
from ..storage.ownership import claim, owned
from .composed import catalogue
from .plot import Plot, as_csv
from .style import styled

STEMS = (
    *("collapse", "models", "distances", "straightness", "class-means-[0-9]*"),
    *("sample-sizes", "gradient-maps", "correlation-pairs"),
)
SERIES_STEMS = ("over", "profiles", "class-means-training")
_PAGE = ("png", "svg", "csv")


def names_of(plots: Iterable[Plot], endings: Sequence[str] = _PAGE) -> list[str]:
    """Names of the files of figures."""
    return [f"{plot.stem}.{ending}" for plot in plots for ending in endings]


def claim_figures(folder: str | os.PathLike[str], *, series: bool = False) -> None:
    """Refuse a folder if a file lies under a figure's name that wgeo did not write.

    Which figures a record will have is not known before it is measured: the names of all count.

    Raises
    ------
    RecordError
        The message names the file.
    """
    stems = SERIES_STEMS if series else STEMS
    claim(folder, *(f"{stem}.{ending}" for stem in stems for ending in _PAGE))


def drawn(record: Mapping[str, Any], folder: Path, source: Path) -> list[Path] | None:
    """The files of a record's figures if all are there, none a link and as new as it; else None."""
    written = source.stat().st_mtime_ns
    files = [folder / name for name in names_of(catalogue(record))]
    regular = all(file.is_file() and not file.is_symlink() for file in files)
    return files if regular and all(f.stat().st_mtime_ns >= written for f in files) else None


def figures(source: Any, out_dir: str | Path, *, endings: Sequence[str] = _PAGE) -> list[Path]:
    """Write every figure of a record to `out_dir` as PNG and SVG, its data beside it as CSV.

    Each file is written aside and then renamed, so that none is ever half there. Figures that an
    earlier call wrote into the folder and this one does not are removed, of the endings asked for;
    files that wgeo did not write are not touched.

    Parameters
    ----------
    source : Analysis, Series or dict
    out_dir : path
    endings : sequence of str
        Which files of each figure: ``png``, ``svg``, ``pdf``, ``csv``.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    ArgumentError
        Another ending.
    RecordError
        The folder cannot be written, or a file that wgeo did not write has a figure's name: then
        nothing is drawn.
    """
    if unknown := sorted(set(endings) - set(ENDINGS)):
        raise ArgumentError(
            f"no figures as {', '.join(unknown)}; choose from {', '.join(ENDINGS)}."
        )
    plots = catalogue(source)
    written: list[Path] = []
    with owned(out_dir) as home:
        home.claim(*names_of(plots, endings))
        for plot in track(plots, "drawing figures"):
            written += home.write(_files(plot, endings))
        now = {path.name for path in written}
        known = [f"{stem}.{ending}" for stem in (*STEMS, *SERIES_STEMS) for ending in endings]
        stale = {name for name in home.listed() if any(fnmatchcase(name, one) for one in known)}
        home.remove(*(stale - now))
    return written


def _files(plot: Plot, endings: Sequence[str]) -> dict[str, bytes]:
    """A figure's files: what they are called, and what they hold."""
    files: dict[str, bytes] = {}
    with warnings.catch_warnings():
        # A class named in a script that the font lacks is drawn as boxes, which is enough said.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = plot.draw()
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once, for all files
        for ending in [ending for ending in _RENDER if ending in endings]:
            files[f"{plot.stem}.{ending}"] = _RENDER[ending](figure)
    if "csv" in endings:
        files[f"{plot.stem}.csv"] = as_csv(plot.rows())
    return files


# The canvases are asked directly, without a date or a version, which would make two drawings of
# one record differ; savefig would draw every figure a second time to ask for its layout.


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    FigureCanvasAgg(figure).print_png(data, metadata={"Software": None})
    return data.getvalue()


@styled
def _svg(figure: Figure) -> bytes:
    data = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(data, metadata={"Date": None, "Creator": None})
    return data.getvalue()


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
    """Write a figure of your own, as a paper or a slide takes it.

    PDF has its letters embedded as letters (no Type 3 fonts), SVG as outlines, so that both look
    alike everywhere; neither has a date in it.

    Parameters
    ----------
    drawn : Axes or Figure
        What a panel returned, or the figure it is in.
    path : path
        Ends in ``.pdf``, ``.svg`` or ``.png``.
    dpi : int
        Of a PNG: 300 is a printer's; a slide of `axes` at 343 is 1920 pixels wide.

    Returns
    -------
    Path

    Raises
    ------
    ArgumentError
        Another ending.
    RecordError
        The file cannot be written.
    """
    path = Path(path)
    ending = path.suffix.lower().removeprefix(".")
    if ending not in _RENDER:
        raise ArgumentError(f"save writes .{', .'.join(_RENDER)}; not {path.suffix or path.name}.")
    figure = drawn if isinstance(drawn, Figure) else drawn.get_figure(root=True)
    assert figure is not None
    usual, window = figure.dpi, figure.canvas
    try:
        figure.dpi = dpi if ending == "png" else 72
        figure.draw_without_rendering()
        write_atomic(writable(path.parent) / path.name, _RENDER[ending](figure))
    finally:
        figure.dpi = usual
        figure.set_canvas(window)
    return path


# --- the figures ---------------------------------------------------------------------------------

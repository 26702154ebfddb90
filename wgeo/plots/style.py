"""The common style of all figures: colors, fonts, axes, legends, names and undefined values."""

from __future__ import annotations

import importlib
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from itertools import takewhile
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, StrMethodFormatter
from matplotlib.transforms import ScaledTranslation

from ..errors import ArgumentError
from ..storage.record import Block, Segment
from ..storage.schema import Part
from ..text import stage_number
from ..thresholds import LOW_RESOLUTION

P = ParamSpec("P")
T = TypeVar("T")

# Okabe and Ito (2008), distinguishable with every common color blindness. Their yellow is left out:
# thin yellow lines on white are hard to see.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")
# Colors of classes, often ten of them: Tol's muted scheme (2021) and black.
CLASS_COLORS = (
    *("#332288", "#CC6677", "#117733", "#DDAA33", "#88CCEE"),
    *("#882255", "#44AA99", "#999933", "#AA4499", "#222222"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
INK, MUTED, RULE, GRID, BAND = "#222222", "#666666", "#BBBBBB", "#DDDDDD", "#F1F1F1"
MEASURED, REFERENCE = COLORS[0], "#555555"
REFERENCE_LINE: dict[str, Any] = {"color": REFERENCE, "lw": 0.9, "ls": (0, (4, 3)), "zorder": 1}

SIZES: dict[str, tuple[float, float]] = {
    "column": (3.35, 2.5),
    "page": (7.2, 3.4),
    "slide": (5.6, 3.15),
}
"""Width and height, in inches, of figures for a paper's column, for its page, and for a slide.

Most text is 7.5 to 9 points. A figure for a slide is meant to be enlarged: if it fills a slide of
13.33 by 7.5 inches, its text is 18 to 21 points.
"""

RC: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "text.parse_math": False,  # a class named "$5" is a name, not a formula
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.0,
    "figure.dpi": 200,
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3 fonts
    "svg.fonttype": "path",
    "svg.hashsalt": "wgeo",  # the same record gives the same bytes
}


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Run a drawing function with this style alone; matplotlib's own settings stay unchanged.

    The user's settings do not affect the figure: a ``matplotlibrc`` in the current folder may be
    untrusted and could run TeX (``text.usetex``).
    """

    @wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(RC)
            return draw(*args, **kwargs)

    return wrapper


def figure_of(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None  # the axes have not been removed
    return figure


class OwnFigure(Figure):
    """A figure of wgeo. Its panels, if there are several, share a legend."""


def new_figure(width: float, height: float) -> Figure:
    """Return a figure that pyplot does not show; sizes are in inches."""
    figure = OwnFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


@styled
def axes(size: str = "page", *, height: float | None = None) -> Axes:
    """Return empty axes of a figure for a paper or a slide, for the ``ax=`` of a panel.

    >>> from wgeo import plots
    >>> plots.axes("column").figure.get_size_inches().tolist()
    [3.35, 2.5]

    Parameters
    ----------
    size : {"column", "page", "slide"}
        A key of `SIZES`.
    height : float, optional
        Height in inches, instead of that in `SIZES`.
    """
    require_choice(size, SIZES, "size")
    width, default = SIZES[size]
    return new_figure(width, default if height is None else height).add_subplot()


def require_choice(value: str, choices: Mapping[str, Any], what: str = "measure") -> None:
    if value not in choices:
        raise ArgumentError(f"no {what} {value!r}; choose from {', '.join(choices)}.")


def new_axes(ax: Axes | None, width: float = 5.5, height: float = 3.2) -> Axes:
    """Return `ax` unless it is None, else pyplot's axes if pyplot is in use, else new axes."""
    if ax is not None:
        return ax
    return _pyplot_axes(width, height) or new_figure(width, height).add_subplot()


def _pyplot_axes(width: float, height: float) -> Axes | None:
    """Return pyplot's current axes if empty, or new axes if pyplot shows figures, or None."""
    if "ipykernel" in sys.modules:  # a notebook, which shows the figures of pyplot
        importlib.import_module("matplotlib.pyplot")
    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    if pyplot is None:
        return None
    if pyplot.get_fignums():
        current: Axes = pyplot.gca()
        if current.name == "rectilinear" and not current.has_data():
            return current
    if pyplot.get_backend().lower() in _FILE_BACKENDS:
        return None
    figure: Figure = pyplot.figure(figsize=(width, height), layout="constrained")
    return figure.add_subplot()


_FILE_BACKENDS = frozenset({"agg", "cairo", "pdf", "pgf", "ps", "svg", "template"})


# --- names and numbers ---------------------------------------------------------------------------


def clean(name: Any) -> str:
    """Return a name on one line, without invalid or direction-changing characters."""
    characters = []
    for character in str(name):
        category = unicodedata.category(character)
        if category in ("Cc", "Zl", "Zp"):  # controls and line breaks
            characters.append(" ")
        elif category == "Cs" or ord(character) & 0xFFFE == 0xFFFE:
            # Half a surrogate pair, as in a path that is not UTF-8; or U+FFFE, invalid in XML.
            characters.append("\N{REPLACEMENT CHARACTER}")
        elif category != "Cf":  # bidirectional overrides, zero-width marks
            characters.append(character)
    return " ".join("".join(characters).split()) or "(no name)"


def short(name: Any, width: int = 22) -> str:
    """Return a clean name, without its middle if it has more than `width` characters."""
    text = clean(name)
    head = (width - 1) // 2
    return text if len(text) <= width else f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def short_names(names: Sequence[Any], width: int = 16) -> list[str]:
    """Return shortened names, without common prefixes such as "backbone.stages."."""
    paths = [clean(name).split(".") for name in names]
    dotted = [path for path in paths if len(path) > 1]
    cut = 0
    if len(dotted) > 1:
        columns = zip(*dotted, strict=False)  # up to the length of the shortest
        cut = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
        # A name must not become empty or a mere number ("blocks.0" -> "0").
        while cut and any("".join(path[cut:]).isdigit() or not path[cut:] for path in dotted):
            cut -= 1
    return [short(".".join(path[cut:] if len(path) > 1 else path), width) for path in paths]


def segment_name(layers: Sequence[str], index: int) -> str:
    """Return the name of a segment in a legend: its first and last layer."""
    if not layers:
        return f"segment {index + 1}"
    names = short_names(layers, 20)
    return f"{names[0]} → {names[-1]}"


def class_name(names: Sequence[str], k: int, width: int = 18) -> str:
    """Return the short name of class k, or ``class k`` if it has no name."""
    return short(names[k], width) if k < len(names) else f"class {k}"


def number(value: Any) -> float:
    """Return a finite int or float as a float, and NaN for anything else, such as None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return float("nan")
    return float(value) if np.isfinite(value) else float("nan")


def numbers(values: Sequence[Any] | None) -> np.ndarray:
    """Return an array of floats, with NaN for undefined values."""
    return np.array([number(v) for v in values or ()], dtype=np.float64)


def interval_ends(intervals: Iterable[Sequence[float] | None]) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and the upper ends of intervals; NaN for None."""
    low, high = np.array([numbers(each or (None, None)) for each in intervals]).reshape(-1, 2).T
    return low, high


def range_text(items: Sequence[Part], key: str) -> str:
    """Return a value's range, as in " from 0.97 to 1", or " undefined"."""
    values = numbers([item.measure(key) for item in items])
    values = values[np.isfinite(values)]
    return f" from {values.min():.3g} to {values.max():.3g}" if values.size else " undefined"


def has_resolution(item: Block | Segment) -> bool:
    """Return whether the resolution is high enough for an OT score to be evidence.

    If it is not, the samples move so little, compared with the distances between them, that almost
    any map has an OT score near 1.
    """
    return number(item.resolution) >= LOW_RESOLUTION  # NaN compares false


def segment_style(i: int) -> dict[str, Any]:
    return {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)]}


# --- axes ----------------------------------------------------------------------------------------


def layer_axis(
    ax: Axes,
    names: Sequence[Any],
    stages: Sequence[Any] = (),
    *,
    labels: bool = True,
    stage_labels: bool = False,
) -> None:
    """Write layer names under an axis, as many as fit, and mark the stages of the layers."""
    if stages:
        _stage_bands(ax, stages, stage_labels)
    n = len(names)
    ax.set_xlim(-0.6, n - 0.4)
    ax.xaxis.set_minor_locator(FixedLocator(range(n)))
    ax.tick_params(axis="x", which="minor", length=2)
    if not labels:
        ax.tick_params(axis="x", which="major", length=3, labelbottom=False)
    inches = inches_wide(ax)
    at = thinned(n, max(2, int(inches / 0.16)))
    texts = short_names(names)
    ax.set_xticks(at)
    if labels:
        horizontal = len(at) <= inches / 0.62 and max(len(texts[i]) for i in at) <= 8
        options: dict[str, Any] = {} if horizontal else {"rotation": 90}
        ax.set_xticklabels([texts[i] for i in at], **options)


def thinned(n: int, budget: int) -> list[int]:
    """Return at most `budget` of the indices 0..n-1: every k-th, and the last."""
    if n <= budget:
        return list(range(n))
    step = -(-(n - 1) // (budget - 1))
    indices = list(range(0, n - 1, step))
    if n - 1 - indices[-1] < step and len(indices) > 1:
        indices.pop()
    return [*indices, n - 1]


def _stage_bands(ax: Axes, stages: Sequence[Any], labels: bool) -> None:
    """Shade every other stage, and draw a line at every change of stage."""
    starts = [0, *(i for i in range(1, len(stages)) if stages[i] != stages[i - 1])]
    shaded = False
    for start, end in zip(starts, [*starts[1:], len(stages)], strict=True):
        if start:
            ax.axvline(start - 0.5, color=RULE, lw=0.7, ls=(0, (2, 2)), zorder=0.5)
        if shaded:
            ax.axvspan(start - 0.5, end - 0.5, color=BAND, lw=0, zorder=0)
        shaded = not shaded and stages[start] is not None
        if labels and stages[start] is not None and len(set(stages)) > 1:
            ax.annotate(
                f"stage {stage_number(stages[start])}",
                ((start + end - 1) / 2, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=7.5,
                color=MUTED,
            )


def log_if_positive(ax: Axes, *series: np.ndarray, axis: str = "y", span: float = 8.0) -> None:
    """Use a logarithmic axis if all values are positive and span more than a factor of `span`."""
    values = np.concatenate([s[np.isfinite(s)] for s in series]) if series else np.empty(0)
    if not values.size or values.min() <= 0 or values.max() < span * values.min():
        return
    (ax.set_yscale if axis == "y" else ax.set_xscale)("log")
    which = ax.yaxis if axis == "y" else ax.xaxis
    decades = np.log10(values.max() / values.min())
    plain = values.min() > 1e-3 and values.max() < 1e4
    which.set_major_locator(LogLocator(subs=(1.0,) if decades > 1.6 else (1.0, 2.0, 5.0)))
    which.set_major_formatter(StrMethodFormatter("{x:g}" if plain else "{x:.0e}"))
    which.set_minor_formatter(NullFormatter())


def legend(target: Axes | Figure, handles: Sequence[Line2D], names: Sequence[str], **options: Any):  # type: ignore[no-untyped-def]
    """Draw a legend whose names may contain dollars or start with underscores."""
    result = target.legend(list(handles), [f"{i}" for i in range(len(handles))], **options)
    text: Text
    for text, name in zip(result.get_texts(), names, strict=True):
        text.set_text(name)
    return result


def legend_above(
    ax: Axes, handles: Sequence[Line2D], names: Sequence[str], *, gap: int = 0
) -> None:
    """Draw a legend `gap` points above the axes: next to their title, or below it if it is wide."""
    needed = sum(map(_entry_width, names))
    title = ax.get_title("left")
    one_line = needed + 0.07 * len(title) <= inches_wide(ax)
    rows = 1 if needed <= inches_wide(ax) else len(names)
    raised = ax.transAxes + ScaledTranslation(0, gap / 72, figure_of(ax).dpi_scale_trans)
    corner, at = ("lower right", 1.0) if one_line or not title else ("lower left", 0.0)
    options: dict[str, Any] = {"loc": corner, "bbox_to_anchor": (at, 1.0)}
    options |= {"ncols": 1 if rows > 1 else len(names), "bbox_transform": raised}
    space = {"borderaxespad": 0.2, "handletextpad": 0.5, "columnspacing": 1.4, "borderpad": 0.1}
    legend(ax, handles, names, **space, **options)
    if title and not one_line:
        ax.set_title(title, pad=gap + 11.5 * rows + 5)


def legend_below(ax: Axes, handles: Sequence[Line2D], names: Sequence[str]) -> None:
    """Draw a legend: below the axes if they are alone in a figure with a layout, else in the axes.

    A figure of wgeo with several panels has one legend, which `page_figure` draws.
    """
    if len(names) < 2:
        return
    figure = figure_of(ax)
    alone = len(figure.axes) == 1
    if alone and isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
        legend_of_figure(figure, handles, names)
    elif alone or not isinstance(figure, OwnFigure):
        legend(ax, handles, names, loc="best")


def legend_of_figure(
    figure: Figure,
    handles: Sequence[Line2D],
    names: Sequence[str],
    loc: str = "outside lower center",
    max_columns: int = 8,
) -> None:
    """Draw a legend below a figure, or at `loc`, in as many columns as fit its width."""
    width = figure.get_size_inches()[0]
    counts = range(min(len(names), max_columns), 1, -1)
    hinted = 1 + _HINTING / figure.dpi
    columns = next((n for n in counts if hinted * _columns_width(names, n) <= width), 1)
    legend(figure, handles, names, loc=loc, ncols=columns)


def _columns_width(names: Sequence[str], count: int) -> float:
    """Return the approximate width in inches of a legend with `count` columns."""
    columns = np.array_split(list(names), count)
    return float(sum(max(map(_entry_width, column)) for column in columns)) - _BETWEEN_COLUMNS


_BETWEEN_COLUMNS = 0.2  # inches
_HINTING = 4.8  # rounding to pixels widens a legend by the fraction _HINTING / dpi


def _entry_width(name: str) -> float:
    """Return the approximate width in inches of a legend entry and the space after it."""
    font = FontProperties(size=mpl.rcParams["legend.fontsize"])
    points = text_to_path.get_text_width_height_descent(name, font, ismath=False)[0]
    return float(points) / 72 + 0.55


def inches_wide(ax: Axes) -> float:
    """Return the width of axes in inches, before the layout of their labels."""
    return float(ax.get_position().width * figure_of(ax).get_size_inches()[0])


def nothing_to_show(ax: Axes, reason: str) -> Axes:
    """Print in the axes the reason why they are empty."""
    ax.set_axis_off()
    options: dict[str, Any] = {"ha": "center", "va": "center", "color": MUTED, "wrap": True}
    ax.text(0.5, 0.5, reason, transform=ax.transAxes, **options)
    return ax

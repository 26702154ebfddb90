"""Figures of the gallery's scripts, collected without pyplot from their global variables."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

_DPI = 160


def figures(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Save the figures that this block of a script made; sphinx-gallery calls this after each."""
    from sphinx_gallery.scrapers import figure_rst

    seen = block_vars.setdefault("wgeo_figures", [])  # kept, so that no id is used twice
    made = []
    for value in list(block_vars["example_globals"].values()):
        figure = value.figure if isinstance(value, Axes) else value
        if isinstance(figure, Figure) and not any(figure is old for old in seen):
            seen.append(figure)
            made.append(figure)
    paths = []
    for figure, path in zip(made, block_vars["image_path_iterator"], strict=False):
        figure.savefig(path, dpi=_DPI)
        paths.append(path)
    return figure_rst(paths, gallery_conf["src_dir"], _alt(made))


def _alt(made: list[Figure]) -> str:
    titles = [text for figure in made if (text := _title(figure))]
    return "; ".join(titles)


def _title(figure: Figure) -> str:
    if figure.get_suptitle():
        return figure.get_suptitle()
    return next(
        (
            ax.get_title(loc)
            for ax in figure.axes
            for loc in ("left", "center")
            if ax.get_title(loc)
        ),
        "",
    )

"""A Sphinx math renderer that uses mathtext: HTML formulas that need no network connection.

Sphinx's own renderers do not suit a page that opens from a file: MathJax is fetched from a CDN, and
imgmath needs LaTeX. MathML would need a converter and an installed mathematical font. mathtext
comes with matplotlib and includes its fonts. Each formula becomes an inline SVG in the color of the
text, with its TeX as the label for screen readers. A formula that mathtext cannot parse causes a
warning, which is an error under ``-W``.
"""

from __future__ import annotations

from functools import cache
from html import escape
from typing import Any

from docutils import nodes
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath, text_to_path
from sphinx.application import Sphinx
from sphinx.util import logging

_SIZE = 10.0  # font size in mathtext, in points; it becomes one em of the page
_SCALE = 1.05  # STIX has a smaller x-height than the theme's text


@cache
def svg(tex: str, *, display: bool = False) -> str:
    """Return a formula as an inline SVG with the size and color of the surrounding text.

    Raise `ValueError` if mathtext cannot parse the formula.
    """
    tex = " ".join(tex.split())
    # mathtext has no display style: without this, its fractions are small.
    text = f"${tex}$" if not display else f"${tex}$".replace(r"\frac", r"\dfrac")
    font = FontProperties(size=_SIZE, math_fontfamily="stix")
    # TextPath uses the same parser, which caches the formula.
    width, height, depth = text_to_path.get_text_width_height_descent(text, font, ismath=True)
    outline = _outline(TextPath((0, 0), text, prop=font))
    box = f"0 {depth - height:.2f} {width:.2f} {height:.2f}"
    em = _SCALE / _SIZE
    style = (
        f"width:{width * em:.3f}em;height:{height * em:.3f}em;vertical-align:{-depth * em:.3f}em"
    )
    kind = "wgeo-math display" if display else "wgeo-math"
    return (
        f'<svg class="{kind}" role="img" aria-label="{escape(tex)}" viewBox="{box}" '
        f'style="{style}" fill="currentColor"><path d="{outline}"/></svg>'
    )


def _outline(path: Path) -> str:
    """Return SVG path data of glyphs, with the y axis pointing down."""
    letters = {path.MOVETO: "M", path.LINETO: "L", path.CURVE3: "Q", path.CURVE4: "C"}
    parts = []
    for vertices, code in path.iter_segments(curves=True, simplify=False):
        if code == path.CLOSEPOLY:
            parts.append("Z")
        else:
            points = vertices.reshape(-1, 2)
            parts.append(letters[code] + " ".join(f"{x:.2f} {-y:.2f}" for x, y in points))
    return "".join(parts)


def _visit_inline(self: Any, node: nodes.math) -> None:
    self.body.append(_svg_or_warn(node))
    raise nodes.SkipNode


def _visit_display(self: Any, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(f"<p>{_svg_or_warn(node, display=True)}</p></div>")
    raise nodes.SkipNode


def _svg_or_warn(node: nodes.Element, *, display: bool = False) -> str:
    tex = node.astext()
    try:
        return svg(tex, display=display)
    except ValueError as error:
        message = "mathtext cannot set %r: %s"
        logging.getLogger(__name__).warning(message, tex, error, location=node)
        return f"<code>{escape(tex)}</code>"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer; ``html_math_renderer = "mathtext"`` selects it."""
    app.add_html_math_renderer("mathtext", (_visit_inline, None), (_visit_display, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

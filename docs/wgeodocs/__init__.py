"""A Sphinx extension: pages generated from the code and from measurements, and links to names.

The function `pages` of a module returns a dict from the path of each page, relative to
docs/generated, to its text. A file whose text has not changed is not written again, so that a
second build is quick.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import api, claims, commands, experiments, measured, names, scraper

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent


def setup(app: Sphinx) -> dict[str, Any]:
    """Write the pages before Sphinx lists its sources, and resolve references to names."""
    app.connect("config-inited", lambda *_: write(DOCS / "generated"), priority=100)
    app.connect("missing-reference", names.resolve)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def write(folder: Path) -> None:
    """Write every generated page, and remove those that are no longer generated."""
    made = {
        **api.pages(),
        **commands.pages(),
        **experiments.pages(ROOT / "experiments"),
        **claims.pages(ROOT / "experiments"),
        **measured.pages(ROOT / "benchmarks"),
    }
    _clean(folder, {*made, *api.objects(), *gallery()})
    for name, text in made.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for source, name in experiments.figures(ROOT / "experiments"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != source.read_bytes():
            shutil.copyfile(source, path)


def gallery() -> set[str]:
    """Return the paths of the pages that sphinx-gallery makes."""
    scripts = (DOCS / "gallery").glob("*.py")
    return {"gallery/index.rst", *(f"gallery/{script.stem}.rst" for script in scripts)}


def _clean(folder: Path, pages: set[str]) -> None:
    """Remove pages of an earlier build that are no longer made, since Sphinx would read them."""
    for old in [*folder.rglob("*.rst"), *folder.rglob("*.md")]:
        if str(old.relative_to(folder).as_posix()) not in pages:
            old.unlink()


def _get_sg_image_scraper() -> Any:
    """Return the scraper; sphinx-gallery calls this, because "wgeodocs" is in image_scrapers."""
    return scraper.figures

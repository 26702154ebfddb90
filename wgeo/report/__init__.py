"""The report of an analysis: a Sphinx project of its own, and the HTML and PDF built from it.

``RUN/report`` is written from ``RUN/analysis.json`` alone and needs no network, neither to build
nor to read: `build` is all there is to call.
"""

from __future__ import annotations

import os
import re
import shutil
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from .. import __version__, plots
from ..errors import RecordError
from ..plots.composed import catalogue
from ..plots.files import drawn, names_of
from ..storage.ownership import claim, claim_all, leftovers, list_all, owned
from ..storage.records import ANALYSIS, SERIES, read_record
from . import building, pages
from .assets import asset
from .building import engine
from .paper import paper

__all__ = ["build"]

_PLACE, _LOG = "report", "report-build.log"


def claim_report(run_dir: str | os.PathLike[str]) -> None:
    """Refuse a folder if its ``report`` or ``report-build.log`` is not as wgeo wrote it.

    Raises
    ------
    RecordError
        The message names the file.
    """
    run = Path(run_dir)
    claim(run, _LOG)
    if os.path.lexists(run / _PLACE):
        claim_all(run / _PLACE)


def build(
    run_dir: str | os.PathLike[str], *, html: bool = True, pdf: bool = False, open: bool = False
) -> Path:
    """Write the report of a saved analysis and build its pages.

    Figures are drawn where ``RUN/figures`` lacks them or the record is newer. Everything is made
    aside and then renamed: an interrupted or failed build leaves the report that was there. Only
    a report that is as wgeo wrote it is replaced.

    Parameters
    ----------
    run_dir : path
        The run's folder, which holds ``analysis.json``, or that of several, with ``series.json``.
    html : bool
        Build the HTML; else write only the Sphinx project, ``RUN/report``.
    pdf : bool
        Typeset ``RUN/report/report.pdf`` too; takes a TeX engine (see `engine`).
    open : bool
        Show what is returned in the browser.

    Returns
    -------
    Path
        ``RUN/report/report.pdf`` where a PDF was asked for, else ``RUN/report/html/index.html``,
        or ``RUN/report/index.md`` without HTML.

    Raises
    ------
    RecordError
        No analysis in the folder, a damaged one, one of another schema, a folder that cannot
        be written, or files that wgeo did not write where the report or its figures belong.
    DependencyError
        A PDF was asked for, and there is no TeX engine or it lacks a package; the message says
        what to install.
    WgeoError
        Sphinx failed or warned, or TeX failed; the message says where the log is.
    """
    run = Path(run_dir)
    tex = engine() if pdf else ""  # before the work, not after
    source = run / (SERIES if _holds_series(run) else ANALYSIS)
    record = read_record(run, source.name)
    claim_report(run)
    if drawn(record, run / "figures", source) is None:
        claim(run / "figures", *names_of(catalogue(record)))
    try:
        with owned(run) as home, home.scratch("report") as aside:
            figures = _figures(record, source)
            project = aside / "report"
            _write_project(record, pages.pages(record), project, figures, source)

            def keep(printed: bytes) -> Path:
                return home.write({_LOG: printed})[0]

            if html:
                building.html(project, keep)
            if pdf:
                typeset = _write_paper(record, aside / "paper", source)
                building.pdf(typeset, tex, keep).rename(project / "report.pdf")
            home.remove(_LOG)
            list_all(project)
            claim_report(run)  # whatever came into it meanwhile
            _swap(project, run / _PLACE, aside / "old")
    except OSError as error:
        raise RecordError(
            f"Cannot write the report of {run}: {error.strerror or error}. Free some space, or "
            f"copy {source.name} to a folder that can be written and run `wgeo report` there."
        ) from error
    page = run / _PLACE / _page(html=html, pdf=pdf)
    if open:
        webbrowser.open(page.resolve().as_uri())
    return page


def _page(*, html: bool, pdf: bool) -> str:
    if pdf:
        return "report.pdf"
    return "html/index.html" if html else "index.md"


def _holds_series(run: Path) -> bool:
    return (run / SERIES).is_file() and not (run / ANALYSIS).exists()


def _figures(record: Mapping[str, Any], source: Path) -> list[Path]:
    """The figures' files, drawn unless they are all there and as new as the record."""
    folder = source.parent / "figures"
    files = drawn(record, folder, source)
    if files is None:
        return plots.figures(record, folder)
    if leftovers(folder):
        with owned(folder):  # a run was killed when they were there already
            pass
    return files


def _write_paper(record: Mapping[str, Any], project: Path, source: Path) -> Path:
    """The same project as it is printed: with figures that TeX can read."""
    figures = plots.figures(record, project.with_name("figures-pdf"), endings=("pdf",))
    _write_project(record, paper(pages.pages(record)), project, figures, source)
    return project


def _write_project(
    record: Mapping[str, Any],
    made: Mapping[str, str],
    project: Path,
    figures: list[Path],
    source: Path,
) -> None:
    for folder in (project, project / "figures", project / "_static", project / "_templates"):
        folder.mkdir()
    for file in figures:
        shutil.copyfile(file, project / "figures" / file.name)
    shutil.copyfile(source, project / source.name)
    for name, text in made.items():
        (project / f"{name}.md").write_text(text, encoding="utf-8")
    when = _created(record)
    footer = f"<p>Made by wgeo {__version__}{f' on {when}' if when else ''}.</p>\n"
    # Themes write the project's name into pages as HTML, unescaped: it may hold none.
    name = re.sub(r"[<>&\"'`{}\\]+", " ", pages.title(record)).strip() or "Report"
    conf = Template(asset("conf.py.in")).substitute(
        project=repr(name), version=repr(__version__), today=repr(when or " ")
    )
    for name, text in {
        "conf.py": conf,
        "_static/report.css": asset("report.css"),
        "_static/scrubber.js": asset("scrubber.js"),
        "_templates/made.html": footer,
    }.items():
        (project / name).write_text(text, encoding="utf-8")


def _created(record: Mapping[str, Any]) -> str:
    """The day of a record, or of the latest in a series; empty where it is not known."""
    days = [str(row.get("created"))[:10] for row in record.get("analyses") or [record]]
    return max((day for day in days if re.fullmatch(r"\d{4}-\d\d-\d\d", day)), default="")


def _swap(new: Path, place: Path, aside: Path) -> None:
    """Put the new folder in its place; folders cannot be replaced in one step, so in two."""
    if place.exists():
        place.rename(aside)
    try:
        new.rename(place)
    except BaseException:
        if aside.exists():
            aside.rename(place)
        raise

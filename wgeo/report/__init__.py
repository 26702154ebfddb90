"""The report of an analysis: a Sphinx project, and the HTML and PDF built from it.

`build` writes ``RUN/report`` from ``RUN/analysis.json``, or from ``RUN/series.json`` for several
runs. Neither building nor reading the report needs a network connection.
"""

from __future__ import annotations

import os
import re
import shutil
import webbrowser
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from string import Template

from .. import __version__, plots
from ..errors import RecordError, WgeoError
from ..plots.files import catalog, current_files, file_names
from ..storage.ownership import (
    has_leftovers,
    owned,
    record_all,
    require_unchanged,
    require_writable,
)
from ..storage.record import AnalysisRow, Record, SeriesRecord
from ..storage.records import ANALYSIS, kind_of, typed_record
from . import building, pages
from .building import engine, for_print
from .markdown import asset

__all__ = ["build"]

_REPORT, _LOG = "report", "report-build.log"


def require_report_writable(run_dir: str | os.PathLike[str]) -> None:
    """Raise `RecordError` unless a folder's report and build log are missing or wgeo's own."""
    run = Path(run_dir)
    require_writable(run, _LOG)
    if os.path.lexists(run / _REPORT):
        require_unchanged(run / _REPORT)


def build(
    run_dir: str | os.PathLike[str], *, html: bool = True, pdf: bool = False, open: bool = False
) -> Path:
    """Write the report of a saved analysis and build its pages.

    Figures are drawn if ``RUN/figures`` lacks them or the record is newer. The report is built in a
    temporary folder and then renamed, so a build that fails leaves an existing report unchanged. A
    report is replaced only if wgeo wrote it and it has not been changed since.

    Parameters
    ----------
    run_dir : path
        The folder of one run, with ``analysis.json``, or of several runs, with ``series.json``.
    html : bool
        Build the HTML. For several runs, also build the report of each run that lacks a current
        one. If False, ``RUN/report`` contains only the Sphinx project and, with `pdf`, the PDF.
    pdf : bool
        Also typeset ``RUN/report/report.pdf``; needs xelatex, lualatex or tectonic.
    open : bool
        Open the returned file in the browser.

    Returns
    -------
    Path
        ``RUN/report/report.pdf`` if `pdf` is true; otherwise ``RUN/report/html/index.html`` if
        `html` is true; otherwise ``RUN/report/index.md``.

    Raises
    ------
    RecordError
        The analysis is missing, damaged or of another schema; the folder cannot be written; or
        the report or its figures would replace files that wgeo did not write.
    DependencyError
        A PDF is requested, but a TeX engine or one of its packages is missing; the message says
        what to install.
    WgeoError
        Sphinx or TeX failed, or Sphinx warned; the message names the log.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(8, 3))
    >>> traj = wgeo.Trajectory.from_arrays([x, 2 * x], np.arange(8) % 2)
    >>> result = wgeo.analysis.analyze_trajectory(traj, bootstrap=0, mufm=False)
    >>> result.save("runs/straight").name
    'analysis.json'
    >>> wgeo.report.build("runs/straight", html=False).as_posix()
    'runs/straight/report/index.md'
    >>> wgeo.Analysis.load("runs/straight").verdict == result.verdict
    True
    """
    run = Path(run_dir)
    tex = engine() if pdf else ""  # first, to fail early if none is installed
    source = run / kind_of(run)
    record = typed_record(run, source.name)
    require_report_writable(run)
    if html and isinstance(record, SeriesRecord):
        record = _with_reports(record, run)
    if current_files(record, run / "figures", source) is None:
        require_writable(run / "figures", *file_names(catalog(record)))
    try:
        with owned(run) as owner, owner.scratch("report") as scratch:
            figures = _figures(record, source)
            project = scratch / "report"
            _write_project(record, pages.pages(record), project, figures, source)

            def save_log(output: bytes) -> Path:
                return owner.write({_LOG: output})[0]

            if html:
                building.html(project, save_log)
            if pdf:
                paper = scratch / "paper"
                figures = plots.figures(record, scratch / "figures-pdf", endings=("pdf",))
                _write_project(record, for_print(pages.pages(record)), paper, figures, source)
                building.pdf(paper, tex, save_log).rename(project / "report.pdf")
            owner.remove(_LOG)
            record_all(project)
            require_report_writable(run)  # files may have appeared in it in the meantime
            _replace_folder(project, run / _REPORT, backup=scratch / "old")
    except OSError as error:
        raise RecordError(
            f"Cannot write the report of {run}: {error.strerror or error}. Free some space, or "
            f"copy {source.name} to a writable folder and run `wgeo report` there."
        ) from error
    page = run / _REPORT / _page(html=html, pdf=pdf)
    if open:
        webbrowser.open(page.resolve().as_uri())
    return page


def _with_reports(series: SeriesRecord, run: Path) -> SeriesRecord:
    """Build the report of each analysis of a series, and add a link to it if that succeeds."""
    reports = (_report_of(row, run) for row in series.analyses)
    html = (run / _REPORT / "html").resolve()
    rows = (
        row if page is None else replace(row, report=Path(os.path.relpath(page, html)).as_posix())
        for row, page in zip(series.analyses, reports, strict=True)
    )
    return replace(series, analyses=tuple(rows))


def _report_of(row: AnalysisRow, run: Path) -> Path | None:
    """Return the report of an analysis of a series, built if necessary; None if impossible."""
    if not row.folder:
        return None
    folder = (run / row.folder).resolve()
    source, page = folder / ANALYSIS, folder / _REPORT / _page(html=True, pdf=False)
    try:
        current = page.is_file() and page.stat().st_mtime >= source.stat().st_mtime
        return page if current else build(folder)
    except (WgeoError, OSError):
        return None


def _page(*, html: bool, pdf: bool) -> str:
    if pdf:
        return "report.pdf"
    return "html/index.html" if html else "index.md"


def _figures(record: Record | SeriesRecord, source: Path) -> list[Path]:
    """Return the files of the figures, drawn again if one is out of date."""
    folder = source.parent / "figures"
    files = current_files(record, folder, source)
    if files is None:
        return plots.figures(record, folder)
    if has_leftovers(folder):
        with owned(folder):  # removes what a killed run left behind
            pass
    return files


def _write_project(
    record: Record | SeriesRecord,
    texts: Mapping[str, str],
    project: Path,
    figures: list[Path],
    source: Path,
) -> None:
    for folder in (project, project / "figures", project / "_static", project / "_templates"):
        folder.mkdir()
    for file in figures:
        shutil.copyfile(file, project / "figures" / file.name)
    shutil.copyfile(source, project / source.name)
    for name, text in texts.items():
        (project / f"{name}.md").write_text(text, encoding="utf-8")
    day = _created(record)
    footer = f"<p>Made by wgeo {__version__}{f' on {day}' if day else ''}.</p>\n"
    # Themes insert the project's name into pages unescaped: it must not contain HTML.
    name = re.sub(r"[<>&\"'`{}\\]+", " ", pages.title(record)).strip() or "Report"
    conf = Template(asset("conf.py.in")).substitute(
        project=repr(name), version=repr(__version__), today=repr(day or " ")
    )
    for name, text in {
        "conf.py": conf,
        "_static/report.css": asset("report.css"),
        "_static/scrubber.js": asset("scrubber.js"),
        "_templates/made.html": footer,
    }.items():
        (project / name).write_text(text, encoding="utf-8")


def _created(record: Record | SeriesRecord) -> str:
    """Return the date of a record, or of the latest one in a series; empty if unknown."""
    rows = record.analyses if isinstance(record, SeriesRecord) else [record]
    days = [(row.created or "")[:10] for row in rows]
    return max((day for day in days if re.fullmatch(r"\d{4}-\d\d-\d\d", day)), default="")


def _replace_folder(new: Path, target: Path, *, backup: Path) -> None:
    """Replace a folder by a new one; if that fails, put the old one back from `backup`."""
    if target.exists():
        target.rename(backup)  # a folder cannot be renamed onto another
    try:
        new.rename(target)
    except BaseException:
        if backup.exists():
            backup.rename(target)
        raise

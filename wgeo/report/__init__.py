"""The report of an analysis: a Sphinx project of its own, and the HTML built from it.

``RUN/report`` is written from ``RUN/analysis.json`` alone and needs no network, neither to build
nor to read: `build` is all there is to call.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import webbrowser
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from .. import __version__, plots
from ..errors import RecordError, WgeoError
from ..files import writable
from ..records import ANALYSIS, SERIES, read_record
from . import pages
from .assets import asset


def build(run_dir: str | os.PathLike[str], *, html: bool = True, open: bool = False) -> Path:
    """Write the report of a saved analysis and build its pages.

    Figures are drawn where ``RUN/figures`` lacks them or the record is newer. Everything is made
    aside and then renamed: an interrupted or failed build leaves the report that was there.

    Parameters
    ----------
    run_dir : path
        The run's folder, which holds ``analysis.json``, or that of several, with ``series.json``.
    html : bool
        Build the HTML; else write only the Sphinx project, ``RUN/report``.
    open : bool
        Show the first page in the browser.

    Returns
    -------
    Path
        ``RUN/report/html/index.html``, or ``RUN/report/index.md`` without HTML.

    Raises
    ------
    RecordError
        No analysis in the folder, a damaged one, one of another schema, or a folder that cannot
        be written.
    WgeoError
        Sphinx failed or warned; the message says where its log is.
    """
    run = Path(run_dir)
    source = run / (SERIES if _holds_series(run) else ANALYSIS)
    record = read_record(run, source.name)
    writable(run)
    try:
        figures = _figures(record, source)
        with tempfile.TemporaryDirectory(prefix=".report-", dir=run) as aside:
            project = Path(aside) / "report"
            _write_project(record, project, figures, source)
            if html:
                _build_html(project, log=run / "report-build.log")
            _swap(project, run / "report", Path(aside) / "old")
    except OSError as error:
        raise RecordError(
            f"Cannot write the report of {run}: {error.strerror or error}. Free some space, or "
            f"copy {source.name} to a folder that can be written and run `wgeo report` there."
        ) from error
    page = run / "report" / ("html/index.html" if html else "index.md")
    if open:
        webbrowser.open(page.resolve().as_uri())
    return page


def _holds_series(run: Path) -> bool:
    return (run / SERIES).is_file() and not (run / ANALYSIS).exists()


def _figures(record: Mapping[str, Any], source: Path) -> list[Path]:
    """The figures' files, drawn unless they are all there and as new as the record."""
    folder, written = source.parent / "figures", source.stat().st_mtime_ns
    files = [
        folder / f"{plot.stem}.{ending}"
        for plot in plots.catalogue(record)
        for ending in ("svg", "png", "csv")
    ]
    if all(file.is_file() and file.stat().st_mtime_ns >= written for file in files):
        return files
    return plots.figures(record, folder)


def _write_project(
    record: Mapping[str, Any], project: Path, figures: list[Path], source: Path
) -> None:
    for folder in (project, project / "figures", project / "_static", project / "_templates"):
        folder.mkdir()
    for file in figures:
        shutil.copyfile(file, project / "figures" / file.name)
    shutil.copyfile(source, project / source.name)
    for name, text in pages.pages(record).items():
        (project / f"{name}.md").write_text(text, encoding="utf-8")
    made = f"<p>Made by wgeo {__version__} on {escape(str(record.get('created'))[:10])}.</p>\n"
    # Themes write the project's name into pages as HTML, unescaped: it may hold none.
    name = re.sub(r"[<>&\"'`{}\\]+", " ", pages.title(record)).strip() or "Report"
    conf = Template(asset("conf.py.in")).substitute(project=repr(name), version=repr(__version__))
    for name, text in {
        "conf.py": conf,
        "_static/report.css": asset("report.css"),
        "_static/scrubber.js": asset("scrubber.js"),
        "_templates/made.html": made,
    }.items():
        (project / name).write_text(text, encoding="utf-8")


def _build_html(project: Path, log: Path) -> None:
    """Run Sphinx in a process of its own: it would leave its state and its handlers in ours."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    doctrees = project.parent / "doctrees"
    root = Path(__file__).parents[2]  # where this very wgeo is imported from
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [*command, "-d", str(doctrees), str(project), str(project / "html")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        log.write_bytes(done.stdout)
        lines = done.stdout.decode(errors="replace").strip().splitlines() or ["no message"]
        told = [line.strip() for line in lines if "WARNING" in line or "rror:" in line]
        raise WgeoError(
            f"Sphinx could not build the report: {(told or lines)[0]}\n"
            f"Its whole log is {log}; any earlier report is untouched. If the log names a missing "
            "module, install wgeo again (`pip install wgeo`) and run `wgeo report` once more."
        )
    log.unlink(missing_ok=True)
    for litter in (".buildinfo", "objects.inv"):
        (project / "html" / litter).unlink(missing_ok=True)


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


__all__ = ["build"]

"""Sphinx and TeX, each in a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import DependencyError, WgeoError

ENGINES = ("xelatex", "lualatex", "tectonic")
"""TeX engines that read Unicode, in order of preference."""

Keep = Callable[[bytes], Path]
"""Keeps what a program that failed has printed; returns the file."""

_INSTALL = (
    "Debian, Ubuntu: `apt-get install texlive-xetex texlive-latex-extra`; macOS: `brew install "
    "--cask mactex`; anywhere with conda: `conda install -c conda-forge tectonic`"
)
_RUNS = 3  # labels, then the pages they lie on, then the table of contents that both moved


def html(project: Path, keep: Keep) -> None:
    """Build ``project/html``; a warning is an error."""
    _sphinx(project, "html", project / "html", keep)
    for litter in (".buildinfo", "objects.inv"):
        (project / "html" / litter).unlink(missing_ok=True)


def engine() -> str:
    """Return the TeX engine that typesets a PDF: ``xelatex``, ``lualatex`` or ``tectonic``.

    Raises
    ------
    DependencyError
        None of them is installed; the message says how to.
    """
    for name in ENGINES:
        if shutil.which(name):
            return name
    raise DependencyError(
        f"A PDF takes a TeX engine ({', '.join(ENGINES)}), and none is installed. {_INSTALL}. "
        "Or open report/html/index.html and print it: the pages have a style for paper."
    )


def pdf(project: Path, tex: str, keep: Keep) -> Path:
    """Typeset a project; return the PDF.

    Raises
    ------
    DependencyError
        TeX lacks a package.
    WgeoError
        Sphinx or TeX failed; the message says where the log is.
    """
    home = project.parent / "latex"
    flavour = "lualatex" if tex == "lualatex" else "xelatex"
    _sphinx(project, "latex", home, keep, "-D", f"latex_engine={flavour}")
    # What a name could smuggle into TeX is escaped; that it may not run programs is said too.
    command = (
        [tex, "--untrusted", "--chatter", "minimal", "report.tex"]
        if tex == "tectonic"
        else [tex, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "report"]
    )
    for _ in range(1 if tex == "tectonic" else _RUNS):
        done = _run(command, cwd=home)
        if done.returncode:
            raise _tex_error(tex, done.stdout.decode(errors="replace"), keep(done.stdout))
    return home / "report.pdf"


def _tex_error(tex: str, said: str, log: Path) -> WgeoError:
    missing = re.search(r"(?:File [`']|requires )(\S+\.(?:sty|cls|def))\b", said)
    if missing:
        return DependencyError(
            f"{tex} lacks {missing[1]}, which a PDF of the report takes. {_INSTALL}."
        )
    lines = said.strip().splitlines() or ["no message"]
    told = [line.strip() for line in lines if line.startswith("!") or "error:" in line]
    return WgeoError(
        f"{tex} could not typeset the report: {(told or lines[-1:])[0]} Its whole log is "
        f"{log}; any earlier report is untouched. Without `pdf=True` the pages are built "
        "all the same."
    )


def _sphinx(project: Path, builder: str, out: Path, keep: Keep, *settings: str) -> None:
    """Run Sphinx in a process of its own: it would leave its state and its handlers in ours."""
    # -P: a module in the current folder is not imported, whatever its name.
    command = [sys.executable, "-P", "-m", "sphinx", "-W", "--keep-going", "-q", "-b", builder]
    doctrees = project.parent / f"doctrees-{builder}"
    folders = [str(path.resolve()) for path in (doctrees, project, out)]
    done = _run([*command, *settings, "-d", *folders], cwd=project.parent)
    if done.returncode:
        log = keep(done.stdout)
        lines = done.stdout.decode(errors="replace").strip().splitlines() or ["no message"]
        told = [line.strip() for line in lines if "WARNING" in line or "rror:" in line]
        raise WgeoError(
            f"Sphinx could not build the report: {(told or lines)[0]} "
            f"Its whole log is {log}; any earlier report is untouched. If the log names a missing "
            "module, install wgeo again (`pip install wgeo`) and run `wgeo report` once more."
        )


def _run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a program in a folder of the report's own, with this very wgeo importable."""
    paths = [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    # A relative entry, as the empty one of PYTHONPATH=":/lib", stands for the current folder.
    absolute = filter(os.path.isabs, paths)
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(absolute)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )

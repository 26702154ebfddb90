"""Build HTML and PDF: run Sphinx and TeX in separate processes, and adapt pages for print."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from ..errors import DependencyError, WgeoError

ENGINES = ("xelatex", "lualatex", "tectonic")  # they read Unicode; in order of preference
SaveLog = Callable[[bytes], Path]  # saves the output of a failed program and returns the file

_INSTALL = (
    "Debian, Ubuntu: `apt-get install texlive-xetex texlive-latex-extra`; macOS: `brew install "
    "--cask mactex`; anywhere with conda: `conda install -c conda-forge tectonic`"
)
_RUNS = 3  # the table of contents shifts the page numbers that it contains


def html(project: Path, save_log: SaveLog) -> None:
    """Build ``project/html``; a warning is an error."""
    _sphinx(project, "html", project / "html", save_log)
    for name in (".buildinfo", "objects.inv"):
        (project / "html" / name).unlink(missing_ok=True)


def engine() -> str:
    """Return the first of `ENGINES` that is installed, or raise `DependencyError`."""
    for name in ENGINES:
        if shutil.which(name):
            return name
    raise DependencyError(
        f"A PDF needs a TeX engine ({', '.join(ENGINES)}), but none is installed. {_INSTALL}. "
        "Or print report/html/index.html from a browser; the pages have a style for print."
    )


def pdf(project: Path, tex: str, save_log: SaveLog) -> Path:
    """Typeset a project and return the path of the PDF."""
    folder = project.parent / "latex"
    sphinx_engine = "lualatex" if tex == "lualatex" else "xelatex"
    _sphinx(project, "latex", folder, save_log, "-D", f"latex_engine={sphinx_engine}")
    # Names are escaped for TeX, and TeX may not run programs.
    command = (
        [tex, "--untrusted", "--chatter", "minimal", "report.tex"]
        if tex == "tectonic"
        else [tex, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "report"]
    )
    for _ in range(1 if tex == "tectonic" else _RUNS):
        process = _run(command, cwd=folder)
        if process.returncode:
            output = process.stdout
            raise _tex_error(tex, output.decode(errors="replace"), save_log(output))
    return folder / "report.pdf"


def _tex_error(tex: str, output: str, log: Path) -> WgeoError:
    missing = re.search(r"(?:File [`']|requires )(\S+\.(?:sty|cls|def))\b", output)
    if missing:
        return DependencyError(
            f"{tex} lacks {missing[1]}, which a PDF of the report needs. {_INSTALL}."
        )
    lines = output.strip().splitlines() or ["no message"]
    errors = [line.strip() for line in lines if line.startswith("!") or "error:" in line]
    return WgeoError(
        f"{tex} could not typeset the report: {(errors or lines[-1:])[0]} The full log is "
        f"{log}; an earlier report is unchanged. Without `pdf=True` the HTML pages are still "
        "built."
    )


def _sphinx(project: Path, builder: str, out: Path, save_log: SaveLog, *settings: str) -> None:
    """Run Sphinx in a separate process, because it changes global state and log handlers."""
    # -P: modules in the current folder are not imported.
    command = [sys.executable, "-P", "-m", "sphinx", "-W", "--keep-going", "-q", "-b", builder]
    doctrees = project.parent / f"doctrees-{builder}"
    folders = [str(path.resolve()) for path in (doctrees, project, out)]
    process = _run([*command, *settings, "-d", *folders], cwd=project.parent)
    if process.returncode:
        log = save_log(process.stdout)
        lines = process.stdout.decode(errors="replace").strip().splitlines() or ["no message"]
        errors = [line.strip() for line in lines if "WARNING" in line or "rror:" in line]
        raise WgeoError(
            f"Sphinx could not build the report: {(errors or lines)[0]} "
            f"The full log is {log}; an earlier report is unchanged. If the log names a missing "
            "module, install wgeo again (`pip install wgeo`) and rerun `wgeo report`."
        )


def _run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a program in a folder, with this installation of wgeo importable."""
    paths = [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    # Relative entries, such as the empty one in PYTHONPATH=":/lib", refer to the current folder.
    absolute = filter(os.path.isabs, paths)
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(absolute)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


# --- pages for print -----------------------------------------------------------------------------

_LINKS = re.compile(r"\(\{download\}`.*\)$", re.MULTILINE)  # after the caption of a figure
_TOC = re.compile(r"^```\{toctree\}\n.*?^```$", re.MULTILINE | re.DOTALL)
_HTML = re.compile(r"^`{7}\{raw\} html\n.*?^`{7}$", re.MULTILINE | re.DOTALL)
_INTERVAL = re.compile(r"(\[[−–\d.,·⁻⁰¹²³⁴-⁹]+), (?=[−–\d.,·⁻⁰¹²³⁴-⁹]+\])")
_WORD = re.compile(r"(?:\\?[^\s|`$]){30,}")  # escaped: a backslash belongs to the next character
_BREAK = "\N{ZERO WIDTH SPACE}"  # conf.py.in lets TeX break lines at it


def for_print(screen: Mapping[str, str]) -> dict[str, str]:
    """Convert pages, by name, from screen to print; the page ``index`` becomes ``summary``.

    Tables of settings get columns of fixed width, in which hashes and paths are broken over lines.
    """
    title, _, summary = screen["index"].partition("\n")
    pages = {"summary": f"# Summary\n{summary}", **screen}
    del pages["index"]
    toc = "\n".join(["```{toctree}", *pages, "```"])
    printed = {name: _printed(name, text) for name, text in pages.items()}
    return {"index": f"{title}\n\n{toc}\n", **printed}


def _printed(name: str, text: str) -> str:
    if name != "provenance":  # the commands on it may contain any text
        for pattern in (_LINKS, _TOC, _HTML):
            text = pattern.sub("", text)
    text = _INTERVAL.sub("\\1,\N{NO-BREAK SPACE}", text)
    lines = text.replace(":widths: auto", ":widths: 3 7").split("\n")
    return "\n".join(_broken(line) if line.startswith("  - ") else line for line in lines)


def _broken(line: str) -> str:
    """Allow line breaks in a cell's long words: after punctuation, or else every 16 characters."""

    def parts(word: re.Match[str]) -> str:
        pieces = re.findall(r"(?:\\?.){1,16}?(?:\\[/\\_.,:-]|(?=$))|(?:\\?.){1,16}", word[0])
        return _BREAK.join(pieces)

    return _WORD.sub(parts, line)

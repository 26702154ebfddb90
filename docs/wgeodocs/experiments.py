"""Pages of the experiments, made from their README files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_PLACE = re.compile(r"<!-- measured: (?P<name>[^>]*) -->\n(?P<table>.*?)<!-- end -->", re.DOTALL)
_IMAGE = re.compile(r"^!\[(?P<alt>[^\]]*)\]\((?P<file>[^)]+)\)$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?!https?:|#)(?P<to>[^)#]*)[^)]*\)")
_TITLE = re.compile(r"^# (.*)$", re.MULTILINE)
_WAITING = "*Not measured yet; the command above measures it.*"


def pages(folder: Path) -> dict[str, str]:
    """Return a page for each experiment, and one that lists them."""
    found = {readme.parent.name: readme.read_text("utf-8") for readme in _readmes(folder)}
    made = {f"experiments/{name}.md": _page(folder / name, text) for name, text in found.items()}
    return {**made, "experiments/index.md": _index(folder, found)}


def figures(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield every figure that a README shows, and the path of its copy."""
    for readme in _readmes(folder):
        for image in _IMAGE.finditer(readme.read_text("utf-8")):
            source = readme.parent / image["file"]
            if source.is_file():
                yield source, f"experiments/{_copy(readme.parent, image['file'])}"


def _readmes(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*/README.md"))


def _copy(home: Path, file: str) -> str:
    return f"figures/{home.name}-{Path(file).name}"


def _page(home: Path, text: str) -> str:
    text = _PLACE.sub(lambda m: m["table"].strip() or _WAITING, text)
    text = text.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
    text = _IMAGE.sub(lambda m: _figure(home, m), text)
    return _LINK.sub(lambda m: _link(m, home.parent), text)


def _figure(home: Path, image: re.Match[str]) -> str:
    if not (home / image["file"]).is_file():
        return ""
    return (
        f"```{{figure}} {_copy(home, image['file'])}\n:alt: {image['alt']}\n\n{image['alt']}\n```"
    )


def _link(link: re.Match[str], folder: Path) -> str:
    """Return a link to another experiment's page; other files are named, not linked."""
    name = Path(link["to"].rstrip("/").removesuffix("/README.md")).name
    if (folder / name / "README.md").is_file():
        return f"[{link['text']}]({name}.md)"
    return f"`{link['text']}`"


def _index(folder: Path, found: dict[str, str]) -> str:
    rows = [f"| [{_title(text)}]({name}.md) | {_state(text)} |" for name, text in found.items()]
    return "\n".join(
        [
            "# Experiments",
            "",
            "Tests of the papers' claims. Each page is the README of an experiment: the question "
            "and its answer, the claims, the command that repeats the measurement, and the "
            "expected and measured results, with intervals over seeds. If the data contradict a "
            "paper, the page says so.",
            "",
            "| Question | |",
            "|---|---|",
            *rows,
            "",
            "```{toctree}",
            ":hidden:",
            "",
            *found,
            "```",
            "",
        ]
    )


def _title(text: str) -> str:
    found = _TITLE.search(text)
    return found[1] if found else ""


def _state(text: str) -> str:
    places = list(_PLACE.finditer(text))
    done = sum(1 for place in places if place["table"].strip())
    if done == len(places):
        return "measured"
    return "not measured yet" if done == 0 else f"measured in part ({done} of {len(places)} tables)"

"""The page of claims: the claims of the papers, and the verdicts of the experiments' READMEs."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

VERDICTS = ("holds", "holds in part", "contradicted", "open")
_SECTION = re.compile(r"^## Verdicts\n(?P<text>.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
_HEAD = ("Claim", "Verdict", "Effect", "Scale", "Departures from the paper")


class Verdict(NamedTuple):
    """A row of a README's table "Verdicts"."""

    experiment: str
    claim: str
    verdict: str
    effect: str
    scale: str
    departures: str


def pages(folder: Path) -> dict[str, str]:
    """Return one page, with a section for each paper."""
    found = list(verdicts(folder))
    papers = tomllib.loads((folder / "claims.toml").read_text("utf-8"))["paper"]
    known = {claim for paper in papers for claim in paper["claims"]}
    if lost := {row.claim for row in found} - known:
        raise ValueError(f"claims.toml has no {', '.join(sorted(lost))}.")
    text = [
        "# Claims",
        "",
        "The claims of the papers, and the results of wgeo's measurements. Each verdict is one of "
        "*holds*, *holds in part*, *contradicted* and *open*. With fewer than three seeds, a "
        "verdict is at most *holds in part*. Intervals are 95 % intervals over seeds unless stated "
        "otherwise. The page of each experiment has the tables and the limits of the "
        "measurement, and the command that repeats it.",
        "",
        *_overview(papers, found),
    ]
    for paper in papers:
        text += ["", f"## {paper['cite']} (arXiv {paper['arxiv']})", ""]
        if "note" in paper:
            text += [paper["note"], ""]
        for claim, statement in paper["claims"].items():
            text += [f"### {claim}", "", statement, ""]
            text += [*_table([row for row in found if row.claim == claim]), ""]
    text += [
        "MUFM is wgeo's reading of Wang, Gai and Zhang's model: the body of the paper was not "
        "available. Its reduced form is the model of Tirer, Huang and Niles-Weed (2023).",
        "",
    ]
    return {"claims.md": "\n".join(text)}


def verdicts(folder: Path) -> Iterator[Verdict]:
    """Yield every row of every experiment's table of verdicts, in order."""
    for readme in sorted(folder.glob("[0-9]*/README.md")):
        section = _SECTION.search(readme.read_text("utf-8"))
        if section is None:
            raise ValueError(f"{readme} has no section 'Verdicts'.")
        rows = [
            tuple(cell.strip() for cell in line.strip("|").split("|"))
            for line in section["text"].splitlines()
            if line.startswith("|")
        ]
        if rows[0] != _HEAD:
            raise ValueError(f"The table of verdicts in {readme} must have the columns {_HEAD}.")
        for row in rows[2:]:
            verdict = Verdict(readme.parent.name, *row)
            if verdict.verdict not in VERDICTS:
                raise ValueError(f"{readme}: {verdict.verdict!r} is not one of {VERDICTS}.")
            yield verdict


def _overview(papers: list[dict], found: list[Verdict]) -> list[str]:
    rows = ["| Claim | | Verdict | Measured in |", "|---|---|---|---|"]
    claims = {claim: words for paper in papers for claim, words in paper["claims"].items()}
    for claim, statement in claims.items():
        own = [row for row in found if row.claim == claim]
        words = ", ".join(dict.fromkeys(row.verdict for row in own)) or "not tested"
        links = ", ".join(_link(row) for row in own)
        rows.append(f"| {claim} | {statement} | {words} | {links} |")
    return rows


def _table(found: list[Verdict]) -> list[str]:
    if not found:
        return ["Not tested."]
    head = ["| Verdict | Effect | Scale | Departures from the paper | |", "|---|---|---|---|---|"]
    return head + [
        f"| **{row.verdict}** | {row.effect} | {row.scale} | {row.departures} | {_link(row)} |"
        for row in found
    ]


def _link(row: Verdict) -> str:
    return f"[{row.experiment.partition('_')[0]}](experiments/{row.experiment}.md)"

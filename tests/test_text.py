"""What comes from files reaches terminals and pages as text."""

from __future__ import annotations

import io
import re
import unicodedata
from pathlib import Path
from xml.etree import ElementTree

import click
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from records import sample_record, sample_series
from rich.table import Table
from rich.text import Text

import wgeo
from wgeo import plots
from wgeo.analysis import Analysis, Series
from wgeo.cli import main, tables
from wgeo.cli.root import command, say
from wgeo.cli.tables import Column, fit_to_width
from wgeo.errors import ArgumentError, DependencyError, WgeoError, WgeoWarning
from wgeo.plots.files import as_csv, catalog
from wgeo.plots.style import clean
from wgeo.report import pages
from wgeo.runtime.terminal import Terminal
from wgeo.text import printable

PACKAGE = Path(wgeo.__file__).parent
HOSTILE = [
    "[/x]",
    "[red]b[/red]",
    "[link=http://evil.example]c[/link]",
    ":bomb:",
    "\x1b[31;1mwgeo: hacked\x1b[0m",
    "\x1b]0;title\x07b",
    "\x9b31mc1",
    "c\nwgeo: all is well",
    "\rover",
    "\u202eabc\u2066",
    "\ud800",
    "\ufffe\uffff\U0001ffff",
    "a\x00b",
    "$x^2$ `code` <b> | # **",
]
ANYTHING = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(), min_size=1, max_size=8))


class Tty(io.StringIO):
    def isatty(self):
        return True


def shown(draw, tty, width=400):
    """The output of a function that prints on a `Terminal`, to a terminal or a pipe."""
    out = Tty() if tty else io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out)
        patch.setenv("COLUMNS", str(width))
        patch.setenv("TERM", "xterm")
        draw()
    return out.getvalue()


def is_text(said, *, styled=False):
    """Whether all characters are printable, except line breaks and the console's own styles."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", said) if styled else said
    return plain.replace("\n", "").isprintable()


@given(ANYTHING, st.booleans())
def test_a_console_shows_every_string_as_it_is(name, tty):
    made = Table(title=name, caption=name)
    made.add_column(name, no_wrap=True)
    made.add_row(name)

    def draw():
        console = Terminal(400)
        console.print(made)
        console.print(name, soft_wrap=True)

    said = shown(draw, tty)
    assert is_text(said, styled=tty)
    assert said.splitlines()[-1] == printable(name, None)
    assert said.count(printable(name, None)) >= 5 or not name.strip()


def test_style_comes_only_from_objects():
    line = Text.assemble(("bold", "bold"), " [red]")
    said = shown(lambda: Terminal(100).print(line), tty=True)
    assert said == "\x1b[1mbold\x1b[0m [red]\n"


def named(name):
    """The record of an analysis in which everything that a file can name has the given name."""
    record = sample_record((2, 2), names="b{stage}.{block}")
    record["provenance"] |= {"arch": name, "data": name, "split": name, "pool": name}
    record["provenance"]["class_names"] = [name]
    for row in record["layers"]:
        if row["name"] == record["layers"][-1]["name"]:
            last, row["name"] = row["name"], name
    for block in record["blocks"]:
        block["target"] = name if block["target"] == last else block["target"]
    for segment in record["segments"]:
        segment["layers"] = [name if layer == last else layer for layer in segment["layers"]]
    words = f"Nothing is known of {name}."
    record["verdict"] = [
        {"claim": "samples", "words": words, "evidence": {"layer": name}, "strength": "warning"}
    ]
    return record


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("tty", [True, False])
def test_tables_and_verdicts_are_text(name, tty):
    record = named(name)
    said = shown(lambda: tables.print_analysis(Analysis(record)), tty)
    assert is_text(said, styled=tty)
    assert said.count(printable(name, None)) >= 3
    series = sample_series(2)
    for row in series["analyses"]:
        row["name"] = name
    series["axis"] = "name"
    said = shown(lambda: tables.print_series(Series(series)), tty)
    assert is_text(said, styled=tty)


@pytest.mark.parametrize("width", [30, 80, 130])
def test_tables_never_cut_a_number(width):
    record = sample_record()
    said = shown(lambda: tables.print_analysis(Analysis(record)), True, width)
    assert "…" not in said
    for block in record["blocks"]:
        assert re.search(rf"\b{block['distance']:.4g}\b", said)
    origin = record["provenance"]
    for what in (origin["data"], f"accuracy {record['accuracy']:.3f} (guessing 0.100"):
        assert what in said
    series = Series(sample_series(3))
    said = shown(lambda: tables.print_series(series), True, width)
    assert "…" not in said
    for row in series.record["analyses"]:
        assert f"{row['layers'][-1]['collapse']['nc1']:.4g}" in said


def test_a_narrow_table_says_what_it_leaves_out():
    said = shown(lambda: tables.print_analysis(Analysis(sample_record())), False, 80)
    table, note = said.split("└")
    assert "interval" in table
    assert "Left out" not in note
    said = shown(lambda: tables.print_analysis(Analysis(sample_record())), True, 80)
    table, note = re.sub(r"\x1b\[[\d;]*m", "", said).split("└")
    assert "interval" not in table
    assert "Not shown at a width of 80 characters: interval, OT centered." in " ".join(note.split())


WORDS = st.text("abc.", min_size=1, max_size=30)


@given(
    st.lists(st.tuples(WORDS, st.floats(0, 1e9), st.integers(0, 3)), min_size=1, max_size=8),
    st.integers(12, 120),
)
def test_no_width_cuts_a_number(columns, width):
    made = [Column("name", ["a.long.name.of.a.layer", "b"], names=True)]
    made += [Column(name, [f"{value:.6g}"] * 2, drop_order) for name, value, drop_order in columns]
    said = shown(lambda: Terminal(width).print(fit_to_width(made, width)), True, width)
    assert "…" not in said
    for column in made[1:]:
        assert column.drop_order or column.cells[0] in said.replace("\n  ", " ")


@pytest.mark.parametrize("name", HOSTILE)
def test_pages_and_figures_are_text(name):
    for page in pages.pages(named(name)).values():
        assert all(unicodedata.category(c) not in ("Cf", "Cs") for c in page)
        assert "\ufffe" not in page
    for plot in catalog(named(name))[:2]:
        (svg,) = plots.files.rendered(plot.draw(), plot.stem, ["svg"]).values()
        ElementTree.fromstring(svg)  # a character that XML cannot hold is an error
    for plot in catalog(named(name)):
        assert as_csv(plot.rows()).decode().replace("\n", "").isprintable()


@given(ANYTHING)
def test_cleaned_names_are_valid_xml(name):
    found = clean(name)
    assert ElementTree.fromstring(f"<a>{found.translate({38: '', 60: ''})}</a>") is not None
    assert found.encode()


@given(ANYTHING)
def test_errors_and_warnings_are_one_line_of_text(name):
    for kind in (WgeoError, ArgumentError, DependencyError, WgeoWarning):
        assert str(kind(f"no {name}")) == f"no {printable(name, None)}"
    assert str(WgeoError("größe")) == "größe"
    assert str(WgeoError()) == ""


def test_command_line_shows_its_arguments():
    evil = "\x1b[31mx\ny"
    for words in (["report", evil], ["analyze", evil], [f"--{evil}"], ["list", evil], [evil]):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 2
        assert is_text(result.output)
        assert r"\x1b[31mx\ny" in result.output or "analyze" in words, result.output


def test_every_command_prints_by_one_function():
    """No other code writes to the terminal, so everything printed is escaped text."""
    sources = {p.name: p.read_text() for p in (PACKAGE / "cli").glob("*.py")}
    assert [name for name, text in sources.items() if "click.echo" in text] == ["root.py"]
    assert sources["root.py"].count("click.echo(") == 1
    users = [p for p in PACKAGE.rglob("*.py") if re.search(r"\bConsole\(", p.read_text())]
    assert [p.name for p in users] == ["progress.py"]  # whose words are wgeo's own


def test_errors_of_libraries_and_paths_are_text(tmp_path):
    lone = click.Group("lone")

    @command("failing", "Fail.", "wgeo failing", within=lone)
    def failing():
        say(tmp_path / "\x1b[31mok")
        raise OSError(2, "no such file", "\x1b[31mname\nwgeo: fine")

    result = CliRunner().invoke(main, ["list", "solvers"])
    assert result.exit_code == 0
    main.add_command(failing)
    try:
        result = CliRunner().invoke(main, ["failing"])
    finally:
        main.commands.pop("failing")
    assert r"\x1b[31mok" in result.output
    assert result.exit_code == 2
    assert is_text(result.output)
    assert len(result.output.splitlines()) == 2


def test_features_with_such_names_are_analysed(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(30, 4)) for _ in HOSTILE[:-4]]
    names = [name for name in HOSTILE if "\ud800" not in name][: len(arrays)]
    wgeo.Trajectory.from_arrays(arrays, np.arange(30) % 3, names).save(tmp_path / "store")
    words = ["analyze", str(tmp_path / "store"), "--out", str(tmp_path / "out"), "--bootstrap", "0"]
    words += ["--no-mufm", "--reference", "none", "--solver", "sliced", "--no-report"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert is_text(result.output)
    assert "[/x]" in result.output

"""What the documentation says is true of the package: commands parse, names exist, examples run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
import sys
from pathlib import Path

import click
import pytest
import run_commands
from webpages import BROWSER, assert_readable, crawl, pages_in, visit

import wgeo
from wgeo.analysis import THRESHOLDS
from wgeo.cli import main

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

from wgeodocs import api, claims, commands, experiments, measured  # noqa: E402

PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
SCRIPTS = sorted((DOCS / "gallery").glob("*.py"))
FENCE = re.compile(r"^```[^`\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHELL = re.compile(r"^(?:\$ |#? {4,})?(wgeo [a-z].*)$", re.MULTILINE)


def told_commands() -> list[tuple[str, str]]:
    """Every whole command line that a page, a script or a command's help shows."""
    texts = {page.name: "\n".join(FENCE.findall(page.read_text("utf-8"))) for page in PAGES}
    texts |= {script.name: script.read_text("utf-8") for script in SCRIPTS}
    for ctx in commands.walk():
        texts[ctx.command_path] = re.sub(r"^ +", "", ctx.command.epilog or "", flags=re.MULTILINE)
    return [
        (place, line.partition("  #")[0].strip())
        for place, text in texts.items()
        for line in SHELL.findall(text)
    ]


def resolved(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that words name, and the words after its name."""
    command: click.Command = main
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.commands.get(words[0])
        assert found is not None, f"no command {words[0]!r}"
        command, words = found, words[1:]
    return command, words


def test_commands_are_found_in_pages_and_help() -> None:
    places = {place for place, _ in told_commands()}
    assert {"README.md", "quickstart.md", "12_torchvision_checkpoint.py", "wgeo analyze"} <= places


@pytest.mark.parametrize(("place", "line"), told_commands())
def test_command_shown_is_one_that_wgeo_takes(place: str, line: str) -> None:
    command, words = resolved(shlex.split(line)[1:])
    command.make_context(command.name, words)  # parses and checks; runs nothing


def test_commands_and_options_mentioned_in_text_exist() -> None:
    options = {name for ctx in commands.walk() for p in ctx.command.params for name in p.opts}
    options |= {
        name for ctx in commands.walk() for p in ctx.command.params for name in p.secondary_opts
    }
    options |= {"--help", "--no-python"}  # the second is an option of torchrun
    for page in PAGES:
        spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", page.read_text("utf-8"))
        for span in spans:
            if span.startswith("wgeo ") and span != "wgeo COMMAND --help":
                resolved(span.split()[1:])
            if span.startswith(("wgeo ", "--")):
                named = set(re.findall(r"(?<!\S)--[a-z-]+", span))
                assert named <= options, f"{page.name}: {span}"


def exists(path: str) -> bool:
    """Whether ``wgeo.a.b`` is a name, or one inside a package that a function hides."""
    first, *rest = path.split(".")
    places = [getattr(wgeo, first, None)]
    if first in api.PACKAGES:
        places.append(api.module_of(first))
    for name in rest:
        places = [getattr(place, name, None) for place in places]
    return any(place is not None for place in places)


@pytest.mark.parametrize("file", [*PAGES, *SCRIPTS], ids=lambda file: file.name)
def test_names_of_the_package_that_pages_use_exist(file: Path) -> None:
    text = file.read_text("utf-8")
    paths = set(re.findall(r"(?<![/\w.])wgeo\.([A-Za-z_][\w.]*\w)", text))
    assert [path for path in paths if not exists(path)] == []


def test_every_public_name_has_a_page_and_a_docstring() -> None:
    pages = api.pages()
    for name in set(wgeo.__all__) - {"__version__"}:
        if name in api.PACKAGES and not callable(getattr(wgeo, name)):
            assert f"api/{name}.rst" in pages
        else:
            assert f"~wgeo.{name}\n" in pages["api/wgeo.rst"]
    for package, names in api.homes().items():
        for name in names:
            assert f"{name.removeprefix(f'wgeo.{package}.')}\n" in pages[f"api/{package}.rst"]
            if api.documented(name):
                assert api.find(name).__doc__, name


def test_no_docstring_has_an_accidental_substitution() -> None:
    bars = re.compile(r"(?<![\w|])\|[^\s|](?:[^|]*[^\s|])?\|(?![\w|])")
    for names in api.homes().values():
        for name in names:
            told = api.find(name).__doc__ if api.documented(name) else None
            plain = re.sub(
                r"``.*?``|:math:`.*?`|\.\. math::.*?\n\n", "", told or "", flags=re.DOTALL
            )
            assert not bars.search(plain), f"{name}: put the formula into double backticks"


def test_thresholds_in_pages_match_the_code() -> None:
    """Pages refer to thresholds, whose values Sphinx inserts; no page contains a value itself."""
    named = {
        name
        for page in DOCS.glob("*.md")
        for name in re.findall(r"\{\{ *(\w+) *\}\}", page.read_text("utf-8"))
    }
    assert named <= set(THRESHOLDS)
    assert {"straight", "optimal", "collapsed", "few_a_class"} <= named
    text = (DOCS / "theory.md").read_text("utf-8")
    section = text.partition("## Terms of a verdict")[2].partition("\n## ")[0]
    assert section
    assert not re.search(r"\d\.\d|\d\d", section)
    assert "THRESHOLDS.items()" in (DOCS / "conf.py").read_text("utf-8")


def test_every_package_is_in_the_table_of_contents() -> None:
    listed = re.findall(
        r"^generated/api/(\w+)$", (DOCS / "api.md").read_text("utf-8"), re.MULTILINE
    )
    assert listed == ["wgeo", *api.PACKAGES]
    homes = {
        getattr(wgeo, name).__module__.split(".")[1]
        for name in api.aliases()
        if hasattr(wgeo, name)
    }
    assert homes <= set(api.PACKAGES)


def test_gallery_scripts_have_titles_and_compile() -> None:
    assert len(SCRIPTS) >= 8
    for script in SCRIPTS:
        text = script.read_text("utf-8")
        compile(text, script.name, "exec")
        assert re.match(r'"""\n(.+)\n=+\n\n', text), f"{script.name} has no title"
        assert "pyplot" not in text
        assert "/tmp" not in text


def test_page_of_commands_has_every_command_and_its_options() -> None:
    page = commands.pages()["commands.md"]
    for ctx in commands.walk():
        assert f" {ctx.command_path}\n" in page
        for parameter in ctx.command.params:
            for option in parameter.opts if isinstance(parameter, click.Option) else ():
                assert option in page


def test_experiment_pages_show_results_and_mark_missing_ones(tmp_path: Path) -> None:
    home = tmp_path / "01_first"
    (home / "figures").mkdir(parents=True)
    (home / "figures" / "there.png").write_bytes(b"png")
    other = tmp_path / "02_second"
    other.mkdir()
    (other / "README.md").write_text("# Another?\n\nNo tables.\n")
    (home / "README.md").write_text(
        "# Is it so?\n\nSee [the other](../02_second), [code](run.py), [paper](https://a.b/c).\n\n"
        "<!-- measured: one -->\n| a |\n| --- |\n| 1 |\n<!-- end -->\n\n"
        "<!-- measured: two -->\n\n<!-- end -->\n\n"
        "![Shown](figures/there.png)\n\n![Missing](figures/missing.png)\n"
    )
    pages = experiments.pages(tmp_path)
    page = pages["experiments/01_first.md"]
    assert "| 1 |" in page
    assert page.count("Not measured yet") == 1
    assert "[the other](02_second.md)" in page
    assert "`code`" in page
    assert "[paper](https://a.b/c)" in page
    assert "```{figure} figures/01_first-there.png" in page
    assert "missing.png" not in page
    copies = dict(experiments.figures(tmp_path))
    assert copies == {home / "figures" / "there.png": "experiments/figures/01_first-there.png"}
    index = pages["experiments/index.md"]
    assert "Is it so?" in index
    assert "measured in part (1 of 2 tables)" in index


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_scripts_of_the_gallery_end_with_what_they_show(script: Path) -> None:
    last = script.read_text("utf-8").rpartition("# %%\n")[2].strip()
    assert last.startswith("# What this shows: ")
    assert all(line.startswith("# ") for line in last.splitlines())
    assert last.endswith(".")


def test_measured_tables_match_the_benchmarks(tmp_path: Path) -> None:
    assert set(measured.pages(tmp_path)) == {f"measured/{name}.md" for name in measured.TABLES}
    for name, text in measured.pages(tmp_path).items():
        assert "Not measured yet" in text, name
    coverage = measured.pages(ROOT / "benchmarks")["measured/coverage.md"]
    assert "| NC1, 4 samples per class | 0.95 | 0.930 ± 0.018 | 200 |" in coverage
    row = {"pair": "a", "seconds": 1.0, "cpu": 2.0, "peak": 2**20}
    record = {
        "versions": {"python": "3.11", "pot": "1", "ott-jax": "not installed"},
        "threads": 2,
        "questions": [
            {
                "title": "chain",
                "samples": 50,
                "rows": [
                    {"solver": "wgeo", **row, "gap": 1e-9, "error": 0.0},
                    {"solver": "peer", **row, "cpu": 6.0, "error": 1e-3},
                    {"solver": "broken", "pair": "a", "skipped": "failed"},
                ],
            }
        ],
    }
    text = measured.TABLES["transport"](record)
    assert "| peer | 1 | 6 | 3.0 × | 1 | 1e-03 | none |" in text
    assert "Did not finish: broken." in text
    assert "| broken" not in text
    assert "ott" not in text


def test_the_table_of_hard_clouds_shows_who_is_ahead() -> None:
    rows = [
        {"pair": "circle", "solver": "wgeo", "cpu": 0.5},
        {"pair": "circle", "solver": "peer", "cpu": 1.0},
        {"pair": "ties", "solver": "wgeo", "cpu": 0.5},
        {"pair": "ties", "solver": "peer", "cpu": 0.1},
        {"pair": "weights", "solver": "wgeo", "cpu": 0.5},
        {"pair": "weights", "solver": "peer", "skipped": "one size"},
    ]
    record = {"questions": [{"title": "hard clouds", "samples": 50, "rows": rows}]}
    text = measured.TABLES["transport-hard"](record)
    assert "| circle | 0.5 | 1 |" in text
    assert "| ties | 0.5 | **0.1** |" in text
    assert "| weights | 0.5 | one size |" in text
    assert measured.TABLES["transport"](record) == ""


def test_generated_pages_match_the_repository() -> None:
    tables = measured.pages(ROOT / "benchmarks")
    for name, text in tables.items():
        benchmark = ROOT / "benchmarks" / f"{Path(name).stem.partition('-')[0]}.json"
        assert ("| --- |" in text) == benchmark.exists(), name
    pages = experiments.pages(ROOT / "experiments")
    folders = {readme.parent.name for readme in (ROOT / "experiments").glob("[0-9]*/README.md")}
    assert set(pages) == {f"experiments/{name}.md" for name in [*folders, "index"]}
    for name, text in pages.items():
        assert "<!--" not in text, name
        assert text.startswith("# "), name


# --- the built pages -----------------------------------------------------------------------------

BUILT = DOCS / "_build" / "html"
WITH_DOCS = pytest.mark.skipif(
    not (BUILT / "index.html").exists(), reason="the pages are not built (make docs)"
)


@WITH_DOCS
def test_every_link_of_the_built_pages_leads_somewhere_and_nothing_is_fetched() -> None:
    checked, broken = crawl(BUILT)
    assert broken == []
    assert checked > 5000


@WITH_DOCS
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_built_pages_can_be_read_on_screen_and_phone_by_day_and_night(tmp_path: Path) -> None:
    """All but the pages of single objects, which are made alike: of these, every twentieth."""
    objects = sorted((BUILT / "generated" / "api" / "objects").glob("*.html"))
    pages = [page for page in pages_in(BUILT) if page not in set(objects)] + objects[::20]
    assert len(pages) > 50
    assert_readable(visit(pages, tmp_path))


def test_everything_shown_in_pages_is_run_or_excluded_with_a_reason() -> None:
    """`make commands` runs it; here, that it finds it, and that .ci/run has the rest."""
    lines = {text for _, kind, text in run_commands.shown() if kind == "sh"}
    assert {line for _, line in told_commands() if _ in ("README.md", "quickstart.md")} <= lines
    ci = (ROOT / ".ci" / "run").read_text("utf-8")
    for line in lines:
        first = line.split()[0]
        assert first in {"wgeo", "pip", "torchrun", *run_commands.ELSEWHERE}, line
        if first == "make":
            assert re.search(rf"^{re.escape(line)}\b", ci, re.MULTILINE), (
                f"{line} is not in .ci/run"
            )
    python = {page.name for page in DOCS.glob("*.md") if "```python" in page.read_text("utf-8")}
    assert python <= {page for page, kind, _ in run_commands.shown() if kind == "python"}


def modules_with_examples() -> list[str]:
    """Modules whose docstrings show Python sessions."""
    found = []
    for info in pkgutil.walk_packages([str(ROOT / "wgeo")], "wgeo."):
        spec = importlib.util.find_spec(info.name)
        if spec and spec.origin and ">>> " in Path(spec.origin).read_text("utf-8"):
            found.append(info.name)
    return found


@pytest.mark.parametrize("name", modules_with_examples())
def test_docstring_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for example in doctest.DocTestFinder().find(sys.modules[name], name, globs={}):
        runner.run(example)
    outcome = runner.summarize()
    assert outcome.attempted > 0
    assert outcome.failed == 0


WITHOUT_EXAMPLE = {
    name: "an error is caught in the same way as WgeoError, which has the example"
    for name in api.homes()["errors"]
    if name != "wgeo.WgeoError"
}


def test_every_public_function_and_class_has_an_example_that_is_run() -> None:
    finder = doctest.DocTestFinder()
    found: set[str] = set()
    for name in modules_with_examples():
        importlib.import_module(name)
        found |= {test.name for test in finder.find(sys.modules[name]) if test.examples}
    public = {name for names in api.homes().values() for name in names if api.documented(name)}
    missing = {
        name
        for name in public
        if f"{api.find(name).__module__}.{api.find(name).__qualname__}" not in found
    }
    assert missing == set(WITHOUT_EXAMPLE)


def test_every_claim_has_a_verdict_with_numbers_of_its_experiment() -> None:
    folder = ROOT / "experiments"
    page = claims.pages(folder)["claims.md"]
    assert "Not tested." not in page
    assert "not tested" not in page
    for row in claims.verdicts(folder):
        text = (folder / row.experiment / "README.md").read_text("utf-8")
        elsewhere = text.replace(row.effect, "")
        numbers = re.findall(r"\d+\.\d+|\d+ of \d+|\d+ %", row.effect)
        assert row.verdict == "open" or numbers or row.claim.startswith(("U", "E", "D")), row
        missing = [number for number in numbers if number not in elsewhere]
        assert not missing, (row.experiment, row.claim, missing)


def test_a_verdict_that_is_none_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "01_first"
    home.mkdir()
    head = (
        "| Claim | Verdict | Effect | Scale | Departures from the paper |\n|---|---|---|---|---|\n"
    )
    (tmp_path / "claims.toml").write_text(
        '[[paper]]\ncite = "A 2020"\narxiv = "1"\n[paper.claims]\nX1 = "It is so."\n'
    )
    row = "| X1 | {} | 1 of 3 | digits | none |\n"
    for text, expected in (
        ("# No table\n", "no section"),
        (f"## Verdicts\n\n{head}{row.format('proved')}", "'proved' is not one of"),
        (f"## Verdicts\n\n{head}{row.format('open').replace('X1', 'X2')}", "has no X2"),
        (f"## Verdicts\n\n{head.replace('Effect', 'Size')}", "must have the columns"),
    ):
        (home / "README.md").write_text(text)
        with pytest.raises(ValueError, match=expected):
            claims.pages(tmp_path)
    (home / "README.md").write_text(f"## Verdicts\n\n{head}{row.format('open')}\n## Conclusions\n")
    page = claims.pages(tmp_path)["claims.md"]
    assert "| X1 | It is so. | open | [01](experiments/01_first.md) |" in page
    assert "### X1\n\nIt is so.\n" in page

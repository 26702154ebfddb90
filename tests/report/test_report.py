"""The report is a Sphinx project that builds with -W, opens from a file, and escapes names."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from records import HOSTILE, damaged, sample_record, sample_series
from webpages import BROWSER, Page, assert_readable, crawl, pages_in, visit

from wgeo import plots, report
from wgeo.analysis import Series
from wgeo.cli import main
from wgeo.cli.tables import _correlation
from wgeo.errors import DependencyError, RecordError, WgeoError
from wgeo.plots.files import catalog
from wgeo.plots.style import clean
from wgeo.report import building, markdown, mathtext, pages
from wgeo.report.building import ENGINES, for_print
from wgeo.report.markdown import asset, correlation
from wgeo.report.scrubber import scrubber
from wgeo.storage.ownership import MANIFEST
from wgeo.storage.record import Block, Layer, Record
from wgeo.text import percent
from wgeo.trajectory import Trajectory

EVIL = "<img src=x onerror=alert(1)>"


def save(record: Any, run: Path) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    bare = {"provenance": {}, "progress": {}, "layers": [], "blocks": [], "segments": []}
    (run / "analysis.json").write_text(json.dumps({**bare, "verdict": [], **record}))
    return run


def hostile_record() -> dict[str, Any]:
    record = sample_record((3, 2), HOSTILE)
    record["provenance"] |= {
        "arch": f"{EVIL}|`y`",
        "data": f"/a/b/{EVIL}.zip",
        "checkpoint": "C:\\dir|x\\```{raw} html",
        "normalize": {"name": "</script>", "mean": [0.5]},
    }
    record["command"] = f'wgeo analyze "```\n{EVIL}" --data $HOME'
    words = f"# Not a heading {EVIL} ```{{raw}} html $x$ {{{{ jinja }}}} | cell\n---\nend"
    record["verdict"] = [{"claim": EVIL, "words": words, "strength": EVIL}]
    return record


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built report of a record with hostile names; two tests build more."""
    folder = save(hostile_record(), tmp_path_factory.mktemp("run"))
    assert report.build(folder) == folder / "report" / "html" / "index.html"
    return folder


@pytest.fixture(scope="module")
def built(run: Path) -> dict[str, Page]:
    return {path.stem: Page(path) for path in pages_in(run / "report" / "html")}


# --- pages ---------------------------------------------------------------------------------------


def test_the_project_is_one_that_sphinx_knows(run: Path) -> None:
    project = run / "report"
    names = {"transport", "straightness", "collapse", "models", "methods", "provenance", "index"}
    assert {path.stem for path in project.glob("*.md")} == names
    assert (project / "conf.py").is_file()
    assert json.loads((project / "analysis.json").read_text()) == hostile_record()
    assert {path.name for path in run.iterdir()} == {"analysis.json", "figures", "report", MANIFEST}


def test_every_link_leads_somewhere_and_nothing_is_fetched(run: Path) -> None:
    checked, broken = crawl(run / "report" / "html")
    assert broken == []
    assert checked > 200


def test_styles_fetch_nothing_either(run: Path) -> None:
    for sheet in (run / "report" / "html").rglob("*.css"):
        for url in re.findall(r"url\(\s*['\"]?([^'\")]+)", sheet.read_text(errors="replace")):
            assert not re.match(r"(https?:)?//", url), f"{sheet.name}: {url}"


def test_names_do_not_become_markup(built: dict[str, Page]) -> None:
    for page in built.values():
        for tag, attributes in page.elements:
            assert not any(key.startswith("on") for key in attributes), (page.path.name, tag)
            assert attributes.get("src") != "x"
        assert EVIL not in page.path.read_text()
        assert "<script>alert" not in page.path.read_text()
    headings = [tag for tag, _ in built["index"].elements if tag in ("h1", "h2")]
    assert headings == ["h1", "h2", "h2"]


def test_names_are_shown_as_they_are(built: dict[str, Page]) -> None:
    shown = " ".join(built["index"].text.split())
    assert clean(hostile_record()["verdict"][0]["words"]) in shown
    assert f"{EVIL}|`y` on {EVIL}.zip" in shown
    told = built["provenance"].text
    assert hostile_record()["command"] in told
    assert "C:\\dir|x\\```{raw} html" in told
    for name in HOSTILE[:5]:
        assert name in told


def test_figures_are_vector_graphics_with_alt_text_and_data(built: dict[str, Page]) -> None:
    images = [a for tag, a in built["collapse"].elements if tag == "img"]
    assert all((image["src"] or "").endswith(".svg") for image in images)
    collapse, classes, separation = (image["alt"] or "" for image in images)
    assert "collapse metrics over 6 layers" in collapse
    assert "Variability of" in classes
    assert "Separation of the classes over depth in 1 stage." in separation
    downloads = {
        (a["href"] or "").rpartition("/")[2]
        for tag, a in built["collapse"].elements
        if tag == "a" and "_downloads" in (a.get("href") or "")
    }
    files = {
        f"{name}.{kind}"
        for name in ("collapse", "class-variability", "separation-law")
        for kind in ("csv", "png", "svg")
    }
    assert downloads == files


def test_every_formula_is_rendered_with_alt_text(built: dict[str, Page]) -> None:
    formulas = re.findall(r"\$\$.+?\$\$|\$[^$]+\$", asset("methods.md"), flags=re.S)
    set_ = [a for tag, a in built["methods"].elements if tag == "svg" and a.get("role") == "img"]
    assert len(set_) == len(formulas) > 40
    spoken = [" ".join(formula.strip("$").split()) for formula in formulas]
    assert [a["aria-label"] for a in set_] == spoken


def test_every_reference_is_cited(built: dict[str, Page]) -> None:
    listed = set(re.findall(r"^\((\w+)\)=", asset("methods.md"), flags=re.M))
    cited = {
        (a.get("href") or "")[1:] for tag, a in built["methods"].elements if tag == "a"
    } & listed
    assert cited == listed
    for author in ("Papyan", "Zhu", "Galanti", "Gai", "Wang", "Brenier", "McCann", "Kantorovich"):
        assert author in built["methods"].text


# --- Markdown ------------------------------------------------------------------------------------


@given(st.text(max_size=60))
def test_escaped_text_renders_as_itself(name: str) -> None:
    """CommonMark with tables, the grammar of MyST, returns the original text."""
    parser = MarkdownIt("commonmark").enable("table")
    tokens = parser.parse(
        markdown.table(("a", "b"), [(markdown.plain(name), "1")], "x").split("\n", 1)[1]
    )
    cells = [t for t in tokens if t.type == "inline"]
    assert len(cells) == 4
    children = cells[2].children or []
    assert all(child.type == "text" for child in children)
    assert "".join(child.content for child in children) == clean(name)


@given(st.text(alphabet="`~a \n#{}\\", max_size=40))
def test_code_block_ends_before_the_next_paragraph(command: str) -> None:
    tokens = MarkdownIt("commonmark").parse(markdown.code(command) + "\n\nafter")
    assert [t.type for t in tokens[:2]] == ["fence", "paragraph_open"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "–"),
        (0.0, "0.00"),
        (1.0, "1.00"),
        (0.12345, "0.123"),
        (123.4, "123"),
        (12345.6, "12,346"),
        (3072, "3,072"),
        (1.5e-7, "1.50·10⁻⁷"),
        (-0.25, "−0.250"),
        (999.4, "999"),
        (999.7, "1,000"),
        (-999.7, "−1,000"),
        (9.9996e-5, "0.000100"),
        (-0.0, "0.00"),
    ],
)
def test_numbers_are_shown_to_three_digits(value: Any, shown: str) -> None:
    assert markdown.general(value) == shown
    assert markdown.general(99999.7, 5) == "100,000"


def test_a_number_that_rounds_to_zero_has_no_sign() -> None:
    assert [markdown.fixed(value) for value in (-0.0004, -0.0006)] == ["0.000", "−0.001"]
    assert markdown.percent(-1e-15) == "0.0 %"
    assert _columns_of_blocks(-1e-9) == ("0.0000", "0.0000")


def _columns_of_blocks(score: float) -> tuple[str, str]:
    """The correlation score of a block, on a page and in a terminal."""
    block = Block.of({"source": "a", "target": "b", "corr_score": [score] * 3, "null": []})
    return correlation(block).strip("()"), _correlation(Layer.of({}), block).strip("()")


def test_intervals_and_shares() -> None:
    assert markdown.with_interval(1.2345, [1.2, 1.3]) == "1.23 [1.20, 1.30]"
    assert markdown.with_interval(1.2345, [None, None]) == "1.23"
    assert markdown.with_interval(None, None) == "–"
    assert markdown.percent(0.8145) == "81.5 %"  # 81.45 lies a little above itself in binary


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        *((0.0, "0.0 %"), (1.0, "100.0 %"), (0.9833, "98.3 %"), (0.9996, "99.96 %")),
        *((0.0004, "0.04 %"), (1 - 1e-6, "99.9999 %"), (1e-14, "0.0 %"), (1 - 1e-14, "100.0 %")),
        *((-0.006, "−0.6 %"), (-0.0004, "−0.04 %"), (-0.9999, "−99.99 %"), (None, "–")),
    ],
)
def test_only_exact_shares_are_shown_as_0_or_100_percent(share: float | None, shown: str) -> None:
    assert markdown.percent(share) == shown
    if share is not None:
        assert percent(share) == shown.replace("−", "-")  # in sentences


def test_tables_contain_the_records_values() -> None:
    record = sample_record()
    made = pages.pages(record)
    for layer in record["layers"]:
        assert markdown.general(layer["collapse"]["nc1"]) in made["collapse"]
    for block in record["blocks"]:
        assert markdown.general(block["distance"], 5) in made["transport"]
    first = record["segments"][0]
    assert (
        markdown.with_interval(
            first["centred"]["length_ratio"], first["centred"]["intervals"]["length_ratio"]
        )
        in (made["index"])
    )
    for said in record["verdict"]:
        assert said["words"] in made["index"].replace("\\", "")
    assert "only the last layer meets the classifier (input, stem" in made["collapse"]
    assert "is the input of the classifier" not in made["collapse"]
    record["layers"][-1]["name"] = "penultimate"
    assert "is the input of the classifier" in pages.pages(record)["collapse"]


def test_a_metric_that_is_zero_is_listed_at_the_last_layer() -> None:
    record = sample_record()
    record["layers"][-1]["collapse"] |= {"ncc_mismatch": 0.0, "nc3": None}
    last = pages.pages(record)["collapse"].partition("At the last layer.")[2]
    assert "NC4, disagreement with the nearest class mean\n  - 0.00" in last.replace("\\", "")
    assert "NC3, classifier to class means \\(Zhu" not in last


def test_first_screen_has_headline_trust_and_the_input_and_links_its_terms() -> None:
    record = sample_record((3, 2))
    words = "The path of the features is bent in stage 1, and <b>the classes</b> are collapsed."
    record["headline"] = {"claim": "headline", "words": words}
    index = pages.pages(record)["index"]
    screen = index.partition("## Verdict")[0]
    assert "The {term}`path of the features <path>` is {term}`bent <straight>` in {term}" in screen
    assert r"\<b\>the classes\<\/b\> are {term}`collapsed`" in screen.replace(" <collapsed>", "")
    trust = re.search(r"\*\*Can it be trusted\?\*\* (.*)", screen)
    assert trust
    for said in ("certified", "resolution", "power", "normalization", "2,000 test samples"):
        assert said in trust[1]
    nc1 = markdown.general(record["layers"][0]["collapse"]["nc1"])
    assert re.search(rf"\| input, before any block \| – .*\| {re.escape(nc1)} \|", screen)
    for unexplained in ("shortcut", "d = ", "one draw"):
        assert unexplained not in screen
    entries = set(re.findall(r"^(\S.*)$", asset("methods.md").split("{glossary}")[1], flags=re.M))
    for shown, entry in re.findall(r"\{term\}`([^`<]+?)(?: <([^`]*)>)?`", screen):
        assert (entry or shown) in entries


def test_a_table_downloads_as_csv() -> None:
    made = markdown.table(
        ("Layer", "{term}`NC1`", "share"),
        [(markdown.plain("a,b|<c>"), "−1.20 [−1.30, 1.50·10⁻⁷]", "81.5 %"), ("d", "12,346", "–")],
        "Two layers: an example.",
    )
    link = re.search(r'<a download="([^"]+)" href="data:text/csv;charset=utf-8,([^"]+)">', made)
    assert link
    assert link[1] == "two-layers-an-example.csv"
    rows = list(csv.DictReader(io.StringIO(unquote(link[2]))))
    assert rows[0] == {
        "Layer": "a,b|<c>",
        "NC1": "-1.20",
        "NC1 low": "-1.30",
        "NC1 high": "1.50e-7",
        "share": "81.5 %",
    }
    assert rows[1] == {"Layer": "d", "NC1": "12346", "NC1 low": "", "NC1 high": "", "share": ""}
    assert "data:" not in for_print({"index": f"# x\n\n{made}"})["summary"]


def test_series_compares_verdicts_and_names_differences() -> None:
    series = sample_series(2, epochs=False)
    first, last = series["analyses"]
    first["accuracy"], last["accuracy"] = 0.8, 0.75
    last["report"] = "../../b & c/report/html/index.html"
    last["segments"] = last["segments"][:1]
    index = pages.pages(series)["index"]
    assert "| epoch\\-1 − epoch\\-0 | −5.0 points |" in index
    assert '<a href="../../b%20%26%20c/report/html/index.html">epoch\\-1</a> |' in index
    assert index.count("stage 2") >= 2


def test_a_series_builds_the_reports_of_its_analyses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(project: Path, keep: Any) -> None:
        (project / "html").mkdir()
        (project / "html" / "index.html").write_text((project / "index.md").read_text())

    monkeypatch.setattr(building, "html", fake)
    monkeypatch.setattr(plots, "figures", lambda *_, **__: [])
    folders = [save(sample_record((2,), seed=k), tmp_path / name) for k, name in enumerate("ab")]
    series = Series.of_folders(folders)
    series.record["analyses"][1]["folder"] = str(tmp_path / "moved")
    series.save(tmp_path / "both")
    page = report.build(tmp_path / "both")
    href = re.search(r'<a href="([^"]+)">a</a>', page.read_text())
    assert href
    assert (page.parent / href[1]).resolve() == tmp_path / "a" / "report" / "html" / "index.html"
    assert not (tmp_path / "b" / "report").exists()
    assert ">b</a>" not in page.read_text()


def test_stage_starts_at_the_layer_before_its_shortcut() -> None:
    record = sample_record((3, 2), models=False)
    for i, layer in enumerate(record["layers"]):  # input, stem, 1.0, 1.1, 2.0, 2.1
        layer["collapse"]["nc1"] = float(i)
    made = pages.pages(record)["index"]
    assert "1.00 → 3.00" in made
    assert "3.00 → 5.00" in made


def test_a_verdict_of_many_sentences_is_a_list() -> None:
    words = ("From layer1.0 on, 1.5 is far.", "The rest is not.")
    verdict = [{"claim": "straightness", "words": each, "strength": "shown"} for each in words]
    record = {**sample_record((2,)), "verdict": verdict}
    made = pages.pages(record)["index"].replace("\\", "")
    assert "- From layer1.0 on, 1.5 is far.\n- The rest is not." in made


def test_a_model_shows_what_was_fitted_or_why_it_was_not() -> None:
    record = sample_record()
    made = pages.pages(record)["models"].replace("\\", "")
    assert "* - held out r2\n  - 0.61803\n" in made
    assert "* - solution: settings: weight decay\n  - 0.0005\n" in made
    record["mufm"] = {"layers": [], "skipped": "MUFM was not asked for (--mufm)."}
    assert "Not fitted: MUFM was not asked for (--mufm)." in (
        pages.pages(record)["models"].replace("\\", "")
    )


def test_models_end_at_their_own_last_layer() -> None:
    """Not with the network's last layer if the last segment ends before it."""
    record = sample_record((3, 2))
    for i, layer in enumerate(record["layers"]):
        layer["collapse"]["nc1"] = i + 0.125
    for model in ("geodesic_model", "mufm", "mufm_given", "ufm"):
        if (record.get(model) or {}).get("layers"):
            record[model]["layers"][-1]["name"] = record["layers"][-2]["name"]
    (row,) = re.findall(r"\| The network .*", pages.pages(record)["models"])
    assert f"{len(record['layers']) - 2}.12" in row.replace("\\", "")


def test_scores_of_low_resolution_are_bracketed() -> None:
    record = sample_record((4,), models=False)
    record["blocks"][0] |= {"ot_score": 0.9876, "resolution": 0.49}
    record["blocks"][1] |= {"ot_score": 0.9765, "resolution": 0.5}
    made = pages.pages(record)["transport"]
    assert "(0.9876)" in made
    assert " 0.9765 " in made


def test_no_fence_has_a_backtick_in_its_first_line() -> None:
    """CommonMark would read it as text, and show the Markdown instead of the table."""
    for record in (sample_record(), sample_series(2), sample_series(2, epochs=False)):
        for page in pages.pages(record).values():
            assert not re.search(r"^`{3,}[^`\n]+`", page, flags=re.M)


def test_undefined_values_are_dashes() -> None:
    made = pages.pages(damaged(sample_record()))
    assert "| Stage 1\\, stem → layer1\\.2 | – | – |" in made["index"]
    assert "| layer1\\.0 | – | [–, –] |" in made["transport"]
    assert not [page for page in made.values() if re.search(r"\b(None|nan|inf)\b", page)]


def test_a_figure_that_no_section_places_is_shown_too(monkeypatch):
    record = sample_record()
    assert "figures" not in pages.pages(record)
    own = dataclasses.replace(catalog(record)[0], stem="own", caption="A figure of my own.")
    monkeypatch.setattr(pages, "catalog", lambda source: [*catalog(source), own])
    made = pages.pages(record)
    assert "figures/own.*" in made["figures"]
    assert "A figure of my own." in made["figures"]
    assert "figures" in made["index"].split("toctree")[1].split()


def test_pages_depend_on_the_records_contents() -> None:
    full = set(pages.pages(sample_record()))
    assert full - set(pages.pages(sample_record(models=False))) == {"models"}
    bare = pages.pages({"schema": 2, "layers": [], "blocks": [], "segments": []})
    assert set(bare) == {"index", "methods", "provenance"}


# --- formulas ------------------------------------------------------------------------------------


def test_formula_stays_on_the_baseline_and_grows_with_its_content() -> None:
    def height(tex: str, **options: Any) -> float:
        found = re.search(r"height:([\d.]+)em;", mathtext.svg(tex, **options))
        assert found
        return float(found[1])

    assert 0.3 < height("x") < 1.0
    assert height(r"\frac{a}{b}") > height("x")
    assert height(r"\frac{a}{b}", display=True) > height(r"\frac{a}{b}")
    assert 'fill="currentColor"' in mathtext.svg("x")
    assert 'aria-label="a &lt; b"' in mathtext.svg("a < b")


def test_unsupported_formula_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknowncommand"):
        mathtext.svg(r"\unknowncommand{x}")


# --- the slider ----------------------------------------------------------------------------------


def test_slider_contains_views_without_markup() -> None:
    record = sample_record((3, 2), HOSTILE)
    block = scrubber(Record.of(record))
    told = re.search(r'<script type="application/json">(.*)</script></div>', block)
    assert told
    assert not set("<>&`") & set(told[1])
    data = json.loads(told[1])
    for scene, segment in zip(data["segments"], record["segments"], strict=True):
        assert scene["layers"][-1] == segment["layers"][-1]
        assert len(scene["layers"]) == len(segment["layers"])
        assert not any("shortcut" in name[-9:] for name in scene["layers"][1:])
        np.testing.assert_allclose(scene["means"], segment["view"]["class_means"], atol=2e-3)
        np.testing.assert_allclose(scene["points"], segment["view"]["points"], atol=2e-3)
        assert scene["classes"][1] == "**bold** | pipe"
    record["segments"][0]["view"] = None
    del record["segments"][1]["view"]["points"]
    only = scrubber(Record.of(record))
    assert only.count('"means"') == 1
    assert '"points"' not in only
    assert scrubber(Record.of({"segments": []})) == ""


def test_an_analysis_puts_samples_of_every_class_in_view(rng: np.random.Generator) -> None:
    from wgeo.trajectory.views import class_view

    labels = np.repeat([2, 5, 7], 120)
    layers = [rng.normal(size=(360, 6)) * scale for scale in (1e-3, 2e-3)]
    segment = Trajectory.from_arrays(layers, labels).segments[0]
    view = class_view(segment, labels)
    points = np.array(view["points"])
    assert points.shape == (2, 198, 2)
    assert np.bincount(view["labels"]).tolist() == [66, 66, 66]
    chosen = np.concatenate([np.flatnonzero(labels == k)[:66] for k in (2, 5, 7)])
    centred = points - points.mean(1, keepdims=True)  # distances in a plane are never longer
    full = np.stack(layers)[:, chosen] - np.stack(layers)[:, chosen].mean(1, keepdims=True)
    assert (np.linalg.norm(centred, axis=-1) <= np.linalg.norm(full, axis=-1) + 1e-5).all()
    assert np.linalg.norm(centred) > 0.4 * np.linalg.norm(full)


# --- building ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No analysis at .*wgeo analyze"),
        ("{", "not a readable record"),
        ("[]", "schema 'list'"),
        ('{"schema": 3}', "schema 3; .*reads schema 2"),
        (b"\xff\xfe\x00", "not a readable record"),
    ],
)
def test_invalid_record_is_refused(tmp_path: Path, content: Any, said: str) -> None:
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "analysis.json").write_bytes(data)
    with pytest.raises(RecordError, match=said):
        report.build(tmp_path)
    assert not (tmp_path / "report").exists()


def test_without_html_the_project_is_written(tmp_path: Path) -> None:
    page = report.build(save({"schema": 2}, tmp_path), html=False)
    assert page == tmp_path / "report" / "index.md"
    assert not (tmp_path / "report" / "html").exists()


def test_a_failed_build_names_its_log_and_leaves_the_old_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"schema": 2, "layers": [], "blocks": [], "segments": []}
    old = report.build(save(record, tmp_path), html=False).read_text()
    broken = {"index": "# New\n\n$\\unknowncommand$\n\n{nosuchrole}`x`\n"}
    monkeypatch.setattr(pages, "pages", lambda _: broken)
    with pytest.raises(WgeoError, match=r"WARNING[\s\S]*report-build\.log"):
        report.build(tmp_path)
    log = (tmp_path / "report-build.log").read_text()
    assert "unknowncommand" in log
    assert "nosuchrole" in log  # all warnings are told, not the first alone
    assert (tmp_path / "report" / "index.md").read_text() == old
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"analysis.json", "report", "report-build.log", MANIFEST}


def test_an_interrupted_build_leaves_the_old_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"schema": 2, "layers": [], "blocks": [], "segments": []}
    old = report.build(save(record, tmp_path), html=False).read_text()

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "html", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report.build(tmp_path)
    assert (tmp_path / "report" / "index.md").read_text() == old
    assert {path.name for path in tmp_path.iterdir()} == {"analysis.json", "report", MANIFEST}


def test_figures_are_drawn_only_if_the_record_is_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = save({"schema": 2, "blocks": sample_record((2,))["blocks"]}, tmp_path)
    drawn: list[Path] = []
    real = plots.figures
    monkeypatch.setattr(
        plots, "figures", lambda record, out: drawn.append(out) or real(record, out)
    )
    report.build(run, html=False)
    report.build(run, html=False)
    assert len(drawn) == 1
    later = (run / "figures" / "distances.svg").stat().st_mtime + 10
    os.utime(run / "analysis.json", (later, later))
    report.build(run, html=False)
    assert len(drawn) == 2


def test_link_in_place_of_a_figure_does_not_include_another_file(tmp_path: Path) -> None:
    run = save({"schema": 2, "blocks": sample_record((2,))["blocks"]}, tmp_path / "run")
    report.build(run, html=False)
    secret = tmp_path / "secret"
    secret.write_text("of the user's alone")
    figure = run / "figures" / "distances.svg"
    figure.unlink()
    figure.symlink_to(secret)
    with pytest.raises(RecordError, match=r"distances\.svg"):
        report.build(run, html=False)
    figure.unlink()
    report.build(run, html=False)
    copies = (path for path in (run / "report").rglob("*") if path.is_file())
    assert not any(b"of the user's alone" in path.read_bytes() for path in copies)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    save({"schema": 2, "blocks": sample_record((2,))["blocks"]}, tmp_path)
    (tmp_path / "figures").write_text("in the way")
    with pytest.raises(RecordError, match="figures"):
        report.build(tmp_path, html=False)


def test_open_shows_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    page = report.build(save({"schema": 2}, tmp_path), html=False, open=True)
    assert opened == [page.resolve().as_uri()]


# --- on paper ------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [sample_record((3, 2)), sample_record((4,)), sample_series()])
def test_each_figure_is_shown_once_with_a_caption(source: Any) -> None:
    text = "\n".join(pages.pages(source).values())
    shown = re.findall(r"^```\{figure\} figures/(\S+)\.\*\n:alt: .*\n\n(.*)$", text, flags=re.M)
    stems = [stem for stem, _ in shown]
    assert sorted(stems) == sorted(plot.stem for plot in catalog(source))
    assert all(len(caption.partition("({download}")[0]) > 40 for _, caption in shown)


def test_printed_page_shows_each_figure_once_and_breaks_long_words() -> None:
    record = sample_record((3, 2))
    record["provenance"]["checkpoint"] = "runs/" + "a_long-name/" * 6 + "x.pt"
    made = pages.pages(record)
    sheets = for_print(made)
    assert list(sheets)[:2] == ["index", "summary"]
    assert set(sheets) == {*made, "summary"}
    whole = "\n".join(sheets.values())
    assert sheets["index"].splitlines()[0] == made["index"].splitlines()[0]
    assert sheets["summary"].startswith("# Summary\n")
    shown = re.findall(r"^```\{figure\} (\S+)$", whole, flags=re.M)
    stems = {plot.stem for plot in catalog(record)}
    assert {name.split("/")[1].removesuffix(".*") for name in shown} == stems
    assert len(shown) == len(set(shown))
    assert "download" not in whole.replace("{download}`analysis.json <analysis.json>`", "")
    assert "{raw}" not in whole
    for name in ("checkpoint", "sha256"):
        (cell,) = re.findall(rf"^\* - {name}\n  - (.*)$", sheets["provenance"], flags=re.M)
        plain = re.sub(r"\\(.)", r"\1", cell)
        assert plain.replace("\N{ZERO WIDTH SPACE}", "") == record["provenance"][name]
        assert max(map(len, plain.split("\N{ZERO WIDTH SPACE}"))) <= 17
        assert not re.search(r"\\\N{ZERO WIDTH SPACE}", cell)  # no mark loses its escape


def fake_tex(folder: Path, said: str, monkeypatch: pytest.MonkeyPatch, **made: str) -> None:
    """Put a TeX engine before all others that says something, and fails unless it makes a PDF."""
    script = folder / "bin" / "xelatex"
    script.parent.mkdir()
    pdf = made.get("pdf")
    end = f"printf '{pdf}' > report.pdf" if pdf else "exit 1"
    script.write_text(f"#!/bin/sh\necho \"$@\" >> {folder}/asked\ncat <<'E'\n{said}\nE\n{end}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")


def test_a_pdf_is_typeset_and_nothing_in_it_may_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tex(tmp_path, "fine", monkeypatch, pdf="%%PDF-1.5")
    run = save({"schema": 2, "blocks": sample_record((2,))["blocks"]}, tmp_path / "run")
    page = report.build(run, html=False, pdf=True)
    assert page == run / "report" / "report.pdf"
    assert page.read_bytes() == b"%PDF-1.5"
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 3
    assert all("-no-shell-escape" in line for line in asked)
    assert {path.name for path in run.iterdir()} == {"analysis.json", "figures", "report", MANIFEST}
    assert {p.suffix for p in (run / "figures").glob("[!.]*")} == {".png", ".svg", ".csv"}


@pytest.mark.parametrize(
    ("said", "error", "told"),
    [
        ("! LaTeX Error: File `tabulary.sty' not found.", DependencyError, "lacks tabulary.sty"),
        ("** Sphinx requires luatex85.sty", DependencyError, r"luatex85\.sty.*texlive-latex-extra"),
        ("hm\n! Undefined control sequence.", WgeoError, r"Undefined control[\s\S]*build\.log"),
    ],
)
def test_errors_of_tex_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, error: Any, told: str
) -> None:
    fake_tex(tmp_path, said, monkeypatch)
    # The test above has Sphinx itself.
    monkeypatch.setattr(building, "_sphinx", lambda _project, _builder, out, *_: out.mkdir())
    run = save({"schema": 2}, tmp_path / "run")
    old = report.build(run, html=False).read_text()
    with pytest.raises(error, match=told):
        report.build(run, html=False, pdf=True)
    assert (run / "report" / "index.md").read_text() == old
    assert said in (run / "report-build.log").read_text()


def test_without_tex_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    run = save({"schema": 2}, tmp_path)
    with pytest.raises(DependencyError, match=r"apt-get install texlive-xetex.*conda install"):
        report.build(run, pdf=True)
    assert [path.name for path in run.iterdir()] == ["analysis.json"]  # said before the work
    done = CliRunner().invoke(main, ["report", str(run), "--pdf"])
    assert done.exit_code == 2
    assert "apt-get install texlive-xetex" in done.output


@pytest.mark.skipif(
    not any(map(shutil.which, ENGINES)), reason="no TeX engine here (texlive-xetex would be one)"
)
def test_hostile_names_are_typeset(tmp_path: Path) -> None:
    # a run of its own: what is built without HTML has none afterwards
    page = report.build(save(hostile_record(), tmp_path / "run"), html=False, pdf=True)
    content = page.read_bytes()
    assert content.startswith(b"%PDF-")
    assert b"/Launch" not in content
    assert b"/JavaScript" not in content
    if not shutil.which("pdftotext"):
        return
    told = subprocess.run(["pdftotext", "-layout", page, "-"], capture_output=True, text=True)
    words = " ".join(told.stdout.split())
    assert "onerror=alert(1)>" in words
    assert "**bold** | pipe" in words
    assert "$x^2$ and $5" in words


# --- in a browser --------------------------------------------------------------------------------

WITH_BROWSER = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")


@WITH_BROWSER
def test_pages_can_be_read_on_screen_and_phone_by_day_and_night(run: Path, tmp_path: Path) -> None:
    found = visit(pages_in(run / "report" / "html"), tmp_path)
    assert len(found) > 6
    assert_readable(found)
    for page in found:
        assert (page["slider"] is not None) == page["page"].endswith("straightness.html")
    assert_slides(found, "stem", "layer1.1")


@WITH_BROWSER
def test_report_of_a_series_has_a_slider_over_epochs(tmp_path: Path) -> None:
    records = {f"epoch-{k}": sample_record((3, 2), seed=k) for k in range(2)}
    for record in records.values():
        record["provenance"]["arch"] = "a_network_with_a_name_that_fills_the_whole_header"
    for epoch, record in zip((0, 9), records.values(), strict=True):
        record["provenance"]["epoch"] = epoch
    html = Series.of(records).report(tmp_path / "run").parent
    assert crawl(html)[1] == []
    found = visit(pages_in(html), tmp_path)
    assert_readable(found)
    assert_slides(found, "epoch 0", "epoch 9")


def assert_slides(found: list[dict[str, Any]], start: str, end: str) -> None:
    """One page has a slider, which moves the class means from the ends of their paths to others."""
    (slider,) = [page["slider"] for page in found if page["slider"]]
    paths, ((first, at_first), (last, at_last)), about = slider
    assert (about["opens"], about["moved"]) == ("0", "1")
    assert "NC1: " in about["then"] != about["opening"]
    assert all("principal component" in label for label in about["axes"])
    assert "What to see" in about["caption"]
    assert [first, last] == [start, end]
    for path, *ends in zip(paths, at_first, at_last, strict=True):
        places, drawn = (
            [[float(v) for v in at.split(",")] for at in pair] for pair in (ends, path)
        )
        np.testing.assert_allclose(places, drawn)
    assert at_first != at_last


@WITH_BROWSER
def test_page_checks_detect_faults(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><body><p style='color: #888'>pale</p><p style='color: #767676'>fair</p>"
        "<p style='color: #888; font-size: 24px'>large</p><p style='width: 500px'>wide</p>"
        "<style>[data-theme=dark] body { background: #1a1a1a }</style><img src='nowhere.png'>"
        "<link rel='stylesheet' href='http://b.example/a.css'>"
    )
    (found,) = visit([page], tmp_path)
    assert found["wide"]["1280"] == 0
    assert found["wide"]["400"] > 90
    assert set(found["pale"]["light"]) == {"pale"}
    assert set(found["pale"]["dark"]) == {"fair", "wide"}
    assert found["abroad"] == ["http://b.example/a.css"]
    assert found["missing"] == found["mute"] == 1
    checked, broken = crawl(tmp_path)
    assert checked == 2
    assert broken == ["bad.html: nowhere.png", "bad.html loads http://b.example/a.css"]
    page.write_text("<!doctype html><body><script>nothing()</script>")
    with pytest.raises(AssertionError, match="nothing is not defined"):
        visit([page], tmp_path)


def test_pages_and_figures_of_a_record_load_without_torch():
    """Sphinx runs in a separate process, which would otherwise load torch for its formulas."""
    script = "import sys, wgeo.report.mathtext, wgeo.plots\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)

"""Every result shows itself in short, as text and in a notebook, and becomes JSON and a table."""

from __future__ import annotations

import base64
import importlib
import json
import re
from dataclasses import dataclass, is_dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import numpy as np
import pytest
from records import sample_record, sample_series

import wgeo
from wgeo.results import Displayed, Result, plain
from wgeo.storage.schema import as_json

pandas = pytest.importorskip("pandas")
rng = np.random.default_rng(0)
LABELS = np.arange(60) % 3
ARRAYS = [rng.normal(size=(60, 4)) + LABELS[:, None] for _ in range(14)]


def trajectory_names(count):
    return [f"<b>layer</b>{k}" for k in range(count)]


@pytest.fixture(scope="module")
def trajectory():
    return wgeo.Trajectory.from_arrays(ARRAYS, LABELS, trajectory_names(len(ARRAYS)))


@pytest.fixture(scope="module")
def shown(trajectory):
    straightness, collapse = (
        wgeo.straightness(trajectory, bootstrap=0),
        wgeo.collapse(trajectory, bootstrap=0),
    )
    return {
        "images": wgeo.load_images("digits", limit=40),
        "trajectory": trajectory,
        "layer": trajectory.layers[0],
        "block": trajectory.blocks[0],
        "segment": trajectory.segments[0],
        "transport": wgeo.wasserstein(*ARRAYS[:2]),
        "verification": wgeo.wasserstein(*ARRAYS[:2]).verify(*ARRAYS[:2]),
        "distances": wgeo.distances(trajectory, solver=wgeo.Sliced(projections=4)),
        "chain": wgeo.transport.chain(trajectory),
        "straightness": straightness,
        "straightness of a segment": straightness.segments[0],
        "transport of a block": straightness.blocks[0],
        "collapse": collapse,
        "collapse of a layer": collapse.layers[0],
        "progress": collapse.progress["nc1"],
        "bias": wgeo.geodesic.bias_curve(*ARRAYS[:2], repeats=2),
        "comparison": wgeo.compare(trajectory, mufm=False),
        "ufm": wgeo.ufm.fit_mse(np.arange(6) % 2, dim=3, weight_decay=0.01, feature_decay=0.01),
        "analysis": wgeo.Analysis(sample_record()),
        "series": wgeo.analysis.Series(sample_series()),
    }


class Balanced(HTMLParser):
    """Collects the tags that are open, and fails if one is closed that was not."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_text_has_ten_lines_at_most(shown):
    for name, each in shown.items():
        lines = repr(each).splitlines()
        assert len(lines) <= 10, name
        assert max(map(len, lines)) <= 88, name
        assert lines[0].startswith(type(each).__name__), name


def test_html_is_balanced_and_escapes_names(shown):
    for each in shown.values():
        assert "script" not in Balanced(each._repr_html_()).seen
    page = shown["straightness"]._repr_html_()
    assert "&lt;b&gt;layer&lt;/b&gt;0" in page
    assert "<b>layer" not in page


def test_plain_values_are_json_and_a_table(shown):
    for name, each in shown.items():
        if isinstance(each, Result):
            json.dumps(as_json(each.to_dict()), allow_nan=False)
            assert len(each.to_pandas()) >= 1, name


def test_a_chain_is_a_table_of_its_blocks_and_segments(shown, trajectory):
    table = shown["chain"].to_pandas()
    assert list(table["part"]) == ["block"] * 13 + ["segment"]
    assert list(table["target"])[:2] == [trajectory.layers[1].name, trajectory.layers[2].name]
    assert table["distance"][0] == shown["chain"].blocks[0].distance


def test_the_text_names_what_a_reader_looks_for(shown):
    result = shown["transport"]
    assert f"{result.distance:.6g}" in repr(result)
    assert "certified" in repr(result)
    assert "... 14 rows in all" in repr(shown["collapse"])
    page = shown["analysis"]._repr_html_()
    for sentence in shown["analysis"].record["verdict"]:
        assert sentence["words"][:20] in page


def test_an_analysis_shows_two_figures_in_a_notebook(shown):
    page = shown["analysis"]._repr_html_()
    pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(pictures) == 2
    for picture in pictures:
        root = ElementTree.fromstring(base64.b64decode(picture))
        assert root.tag.endswith("svg")
        assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 20
    assert len(page) < 400_000


def test_an_analysis_gives_its_layers_blocks_and_segments(shown):
    analysis = shown["analysis"]
    assert analysis.layers is analysis.record["layers"]
    assert analysis.blocks is analysis.record["blocks"]
    assert analysis.segments is analysis.record["segments"]
    table = analysis.to_pandas()
    assert list(table["layer"]) == [layer["name"] for layer in analysis.layers]
    block = analysis.blocks[-1]
    (row,) = table[table["layer"] == block["target"]].to_dict("records")
    assert row["distance"] == block["distance"]


def test_every_public_dataclass_shows_itself_in_short():
    """A dataclass would print its arrays, unless it says ``repr=False``."""
    for line in (Path(__file__).parents[1] / "api.txt").read_text().splitlines():
        name = line.split("(")[0]
        module, _, attribute = name.rpartition(".")
        try:
            value = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError):
            continue  # a method
        if is_dataclass(value) and issubclass(value, Displayed):
            assert value.__repr__ is Displayed.__repr__, name
            assert "_repr_html_" not in vars(value), name


def test_a_text_says_nothing_of_data_that_are_unknown():
    record = sample_record()
    record["provenance"] |= {"arch": None, "data": None, "split": None}
    assert "None" not in repr(wgeo.Analysis(record))


def test_a_class_lists_what_is_a_plain_value_and_what_is_not():
    @dataclass(frozen=True, repr=False)
    class Listed(Result):
        name: str
        size: int
        values: np.ndarray
        _included: ClassVar[tuple[str, ...]] = ("values", "double")
        _omitted: ClassVar[tuple[str, ...]] = ("name",)

        @property
        def double(self):
            return 2 * self.size

    found = Listed("a", 3, np.arange(2)).to_dict()
    assert found == {"size": 3, "values": [0, 1], "double": 6}
    assert type(found["values"]) is list


def test_arrays_stay_out_of_plain_values():
    @dataclass(frozen=True, repr=False)
    class Pair(Result):
        name: str
        values: tuple[float, float]
        cloud: np.ndarray

    pair = Pair("a", (1.0, 2.0), np.zeros(3))
    assert pair.to_dict() == {"name": "a", "values": [1.0, 2.0]}
    assert plain({"x": (pair,)}) == {"x": [{"name": "a", "values": [1.0, 2.0]}]}
    assert repr(pair) == "Pair: name=a"

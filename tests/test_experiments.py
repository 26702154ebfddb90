"""What the experiments keep: used again only if code and images are those of today."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parents[1] / "experiments"


@pytest.fixture
def beside(monkeypatch):
    """Import a module of the experiments as run.py does."""
    monkeypatch.syspath_prepend(str(HERE))

    def module(name: str):
        return importlib.import_module(name)

    yield module
    for name in ("kept", "lab", "recipes"):
        sys.modules.pop(name, None)


RUN = '''
import helper
from tables import table

SIZES = (1, 2)
TITLE = "a title"


def measure(cell, bench):
    """Measure."""
    return once(cell)


def once(cell):
    return helper.double(SIZES[0])


def draw():
    return table(TITLE)
'''


@pytest.fixture
def code(tmp_path, beside):
    """Hash the code of an experiment, whose files may be edited before."""
    folder = tmp_path / "01_first"
    folder.mkdir()
    (folder / "run.py").write_text(RUN)
    (tmp_path / "helper.py").write_text("import far\n\ndef double(x):\n    return far.add(x, x)\n")
    (tmp_path / "far.py").write_text("def add(x, y):\n    return x + y\n")
    (tmp_path / "tables.py").write_text("def table(x):\n    return x\n")
    kept = beside("kept")

    def hashed(file: str = "01_first/run.py", old: str = "", new: str = "") -> str:
        path = tmp_path / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        spec = importlib.util.spec_from_file_location("an_experiment", folder / "run.py")
        run = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(tmp_path))
        try:
            spec.loader.exec_module(run)
        finally:
            sys.path.remove(str(tmp_path))
        found = kept.code_of(run.measure)
        path.write_text(text)
        return found

    yield hashed
    for name in ("helper", "far", "tables"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("01_first/run.py", "return once(cell)", "return dict(once(cell))"),
        ("01_first/run.py", "SIZES[0]", "SIZES[1]"),
        ("01_first/run.py", "(1, 2)", "(2, 1)"),
        ("helper.py", "far.add(x, x)", "far.add(x, 2 * x)"),
        ("far.py", "x + y", "x - y"),
    ],
)
def test_what_measures_is_part_of_the_key(code, file, old, new):
    assert code() == code()
    assert code(file, old, new) != code()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("01_first/run.py", '"""Measure."""', '"""Measure it."""  # as said'),
        ("01_first/run.py", "return table(TITLE)", "return table(TITLE * 2)"),
        ("01_first/run.py", "a title", "another"),
        ("tables.py", "return x", "return 2 * x"),
        ("helper.py", "\n\ndef", "\n\n\n# twice\ndef"),
    ],
)
def test_words_and_tables_are_no_part_of_the_key(code, file, old, new):
    assert code(file, old, new) == code()


def test_the_package_is_part_of_the_key(beside, tmp_path, monkeypatch):
    kept = beside("kept")
    (tmp_path / "training").mkdir()
    for name in ("__init__.py", "transport.py", "training/job.py"):
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr(kept.wgeo, "__file__", str(tmp_path / "__init__.py"))

    def hashed() -> str:
        kept._package.cache_clear()
        return kept._package()

    before = hashed()
    (tmp_path / "training" / "job.py").write_text("x = 2\n")  # networks have a key of their own
    assert hashed() == before
    (tmp_path / "transport.py").write_text("x = 2\n")
    assert hashed() != before
    kept._package.cache_clear()


def digits_file(path: Path, shift: int = 0) -> str:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 200, (40, 8, 8), dtype=np.uint8) + np.uint8(shift)
    np.savez(path, x_train=x, y_train=np.arange(40) % 4)
    return f"npz:{path}"


def test_results_follow_the_images_not_where_they_lie(beside, tmp_path):
    lab = beside("lab")
    first = lab.Bench(tmp_path, {"toy": digits_file(tmp_path / "a.npz")})
    first.images("toy", 20)
    read = json.loads(json.dumps(first.read))
    moved = lab.Bench(tmp_path, {"toy": digits_file(tmp_path / "b.npz")})
    changed = lab.Bench(tmp_path, {"toy": digits_file(tmp_path / "c.npz", shift=1)})
    assert moved.agrees(read)
    assert not changed.agrees(read)


def test_images_of_a_file_are_normalised_as_those_of_the_name(beside, tmp_path):
    bench = beside("lab").Bench(tmp_path, {"mnist": digits_file(tmp_path / "a.npz")})
    images = bench.images("mnist", 20)
    assert (images.name, images.preset) == ("mnist", "mnist")


def test_networks_are_found_again_by_recipe_and_images(beside, tmp_path):
    lab = beside("lab")
    recipe = {"epochs": 1, "lr": 0.05, "options": {"width": 4, "depth": 2}, "seed": 0}

    def folder(source: str, **more) -> Path:
        bench = lab.Bench(tmp_path / "out", {"toy": source})
        return bench.trained("isoresnet", "toy", limit=20, **{**recipe, **more}).folder

    a = folder(digits_file(tmp_path / "a.npz"))
    assert a.parent == tmp_path / "out" / "trained"
    assert folder(digits_file(tmp_path / "b.npz")) == a
    assert folder(digits_file(tmp_path / "c.npz", shift=1)) != a
    assert folder(digits_file(tmp_path / "a.npz"), seed=1) != a

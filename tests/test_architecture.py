"""The architecture: packages import only from packages before them in the flow."""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

import wgeo

PACKAGE = Path(wgeo.__file__).parent
FLOW = [
    "text",
    "errors",
    "_deprecated",
    "_lazy",
    "results",
    "thresholds",
    "runtime",
    "arrays",
    "storage",
    "models",
    "data",
    "checkpoints",
    "training",
    "trajectory",
    "features",
    "transport",
    "geodesic",
    "neural_collapse",
    "ufm",
    "comparison",
    "plots",
    "report",
    "analysis",
    "cli",
]


def _package(path: Path) -> str:
    inside = path.relative_to(PACKAGE)
    return inside.parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Packages of wgeo that a module imports, at its top or inside a function."""
    depth = len(path.relative_to(PACKAGE).parts)
    packages = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            packages |= {name.split(".")[0] for name in names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wgeo."):
            packages.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            parts = [alias.name.split(".") for alias in node.names]
            packages |= {part[1] for part in parts if part[0] == "wgeo" and len(part) > 1}
    return packages - {"__version__"}


def test_page_and_drawing_show_the_packages_in_this_order():
    docs = Path(__file__).resolve().parents[1] / "docs"
    shown = [name for name in FLOW if not name.startswith("_")]
    rows = re.findall(r"^\| (`.*?) \|", (docs / "architecture.md").read_text(), re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed, key=shown.index) == listed
    assert set(listed) == set(shown)
    drawn = re.findall(r">([^<]+)</text>", (docs / "images" / "flow.svg").read_text())
    assert set(shown) <= {name for text in drawn for name in re.findall(r"\w+", text)}


ENTRY_POINTS = (PACKAGE / "__init__.py", PACKAGE / "__main__.py")  # outside the flow
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path not in ENTRY_POINTS)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_import_only_allowed_packages(path):
    package = _package(path)
    assert package in FLOW, f"{package} has no place in the flow; give it one here and in the docs"
    below = {other for other in _imports(path) if FLOW.index(other) > FLOW.index(package)}
    assert not below, f"{package} imports from below: {below}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_stay_below_the_line_limit(path):
    assert len(path.read_text().splitlines()) <= 450


def test_public_names_exist():
    for name in wgeo.__all__:
        assert getattr(wgeo, name) is not None


def test_no_module_shares_its_name_with_a_public_function():
    """So ``import wgeo.anything`` means what it says, whatever was imported before."""
    functions = {name for name in wgeo.__all__ if inspect.isroutine(getattr(wgeo, name))}
    assert "collapse" in functions
    modules = {path.stem for path in MODULES} | {path.parent.name for path in MODULES}
    assert not functions & modules


def test_no_module_shares_its_name_with_another_object_of_its_package():
    packages = [path.parent for path in MODULES if path.name == "__init__.py"]
    assert PACKAGE / "ufm" / "mufm" in packages
    for folder in packages:
        package = import_module(".".join(folder.relative_to(PACKAGE.parent).parts))
        for name in {path.stem for path in folder.iterdir()} & set(vars(package)):
            assert inspect.ismodule(getattr(package, name)), f"{package.__name__}.{name}"


def test_make_knows_which_targets_are_not_files():
    text = (PACKAGE.parent / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert set(re.findall(r"^([a-z]+):", text, re.MULTILINE)) == set(phony[1].split())

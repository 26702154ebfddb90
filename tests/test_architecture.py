"""The house as planned: modules import only from modules above them in the flow."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import wgeo

PACKAGE = Path(wgeo.__file__).parent
FLOW = [
    "names",
    "errors",
    "terminal",
    "progress",
    "arrays",
    "memory",
    "distributed",
    "files",
    "ownership",
    "rows",
    "schema",
    "records",
    "models",
    "data",
    "checkpoint",
    "training",
    "store",
    "embedding",
    "trajectory",
    "blocks",
    "features",
    "transport",
    "geodesic",
    "jacobian",
    "brenier",
    "collapse",
    "ufm",
    "compare",
    "plots",
    "report",
    "analysis",
    "table",
    "cli",
]


def _package(path: Path) -> str:
    inside = path.relative_to(PACKAGE)
    return inside.parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Rooms of wgeo that a module imports, wherever in the file it does so."""
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


DOORS = (PACKAGE / "__init__.py", PACKAGE / "__main__.py")  # they stand outside the flow
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path not in DOORS)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_above(path):
    package = _package(path)
    assert package in FLOW, f"{package} has no place in the flow; give it one here and in the docs"
    below = {other for other in _imports(path) if FLOW.index(other) > FLOW.index(package)}
    assert not below, f"{package} imports from below: {below}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_is_readable_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 450


def test_public_names_exist_and_win_over_rooms_of_the_same_name():
    for name in wgeo.__all__:
        assert getattr(wgeo, name) is not None
    importlib.import_module("wgeo.collapse")  # binds the module; the function must stay

    assert callable(wgeo.collapse)

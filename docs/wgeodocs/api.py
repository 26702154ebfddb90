"""The reference: a page for every package, and one for every public name.

A name that ``wgeo`` itself exports is documented under ``wgeo``, whatever package defines it.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections import Counter
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import wgeo

# Packages in the order in which data flows, and the names of those that have no __all__.
PACKAGES: dict[str, tuple[str, ...]] = {
    "data": (),
    "models": (),
    "checkpoints": (),
    "training": (),
    "features": (),
    "trajectory": (),
    "runtime": (),
    "transport": (),
    "geodesic": (),
    "neural_collapse": (),
    "ufm": (),
    "comparison": (),
    "analysis": (),
    "plots": (),
    "report": (),
    "errors": (
        "WgeoError",
        "ArgumentError",
        "CheckpointError",
        "ConvergenceError",
        "DataError",
        "DependencyError",
        "FeatureError",
        "ProcessError",
        "RecordError",
        "WgeoWarning",
    ),
}

# Constants that a parameter's description refers to, and that no __all__ contains.
CONSTANTS = {"plots": ("series.OVER", "series.ENDS", "paths.CURVES", "block_transport.TESTS")}


def module_of(package: str) -> ModuleType:
    """Return the module of a package, even if ``wgeo`` has a function of the same name."""
    importlib.import_module(f"wgeo.{package}")
    return sys.modules[f"wgeo.{package}"]


def names_in(package: str) -> list[str]:
    """Return the public names of a package."""
    module = module_of(package)
    return list(getattr(module, "__all__", None) or PACKAGES[package])


def home(package: str, name: str) -> str:
    """Return the full name under which a name is documented: under ``wgeo`` if exported there."""
    found = getattr(module_of(package), name)
    if name in wgeo.__all__ and getattr(wgeo, name) is found:
        return f"wgeo.{name}"
    return f"wgeo.{package}.{name}"


def documented(name: str) -> bool:
    """Return whether an object has a page of its own, as classes and functions do."""
    return inspect.isclass(find(name)) or inspect.isroutine(find(name))


def find(name: str) -> Any:
    """Return the object of a full name such as ``wgeo.transport.Chain``."""
    home, _, last = name.rpartition(".")
    module = wgeo if home == "wgeo" else module_of(home.removeprefix("wgeo."))
    return getattr(module, last)


def homes() -> dict[str, list[str]]:
    """Return the full names of all packages, and of ``wgeo`` itself."""
    top = [
        f"wgeo.{name}"
        for name in wgeo.__all__
        if name not in PACKAGES or callable(find(f"wgeo.{name}"))
    ]
    top = [name for name in top if documented(name)]
    return {
        "wgeo": top,
        **{package: [home(package, name) for name in names_in(package)] for package in PACKAGES},
    }


def aliases() -> dict[str, str]:
    """Return the full name of each class; numpydoc links class names in types of parameters."""
    found: dict[str, str] = {}
    for names in homes().values():
        for name in names:
            if inspect.isclass(find(name)):
                found.setdefault(name.rpartition(".")[2], name)
    return found


def case_map() -> dict[str, str]:
    """Return other file names for classes whose name differs from another name only in case."""
    names = {name for package in homes().values() for name in package}
    count = Counter(name.lower() for name in names)
    return {
        name: f"{name}-class"
        for name in names
        if count[name.lower()] > 1 and inspect.isclass(find(name))
    }


def objects() -> set[str]:
    """Return the paths of the pages that autosummary makes."""
    names = {name for package in homes().values() for name in package if documented(name)}
    return {f"api/objects/{case_map().get(name, name)}.rst" for name in names}


def pages() -> dict[str, str]:
    """Return the pages of the packages, and of ``wgeo``."""
    found = homes()
    return {
        "api/wgeo.rst": _top(found["wgeo"]),
        **{f"api/{package}.rst": _page_of(package, found[package]) for package in PACKAGES},
    }


def _top(names: list[str]) -> str:
    return "\n".join(
        [
            *_head("wgeo"),
            "The names used most. Each belongs to one of the packages and is loaded on first use.",
            "",
            *_summary(names, toctree=True),
        ]
    )


def _page_of(package: str, names: list[str]) -> str:
    full = f"wgeo.{package}"
    lines = [*_head(full), f".. automodule:: {full}", "   :no-members:", "   :no-index:", ""]
    lines += [f".. currentmodule:: {full}", ""]
    above = [n for n in names if n.count(".") == 1]
    own = [n for n in names if n.count(".") > 1 and documented(n)]
    constants = [n for n in names if n.count(".") > 1 and not documented(n)]
    constants += [f"{full}.{name}" for name in CONSTANTS.get(package, ())]
    if above:
        lines += ["Also as ``wgeo.NAME``:" if own else "As ``wgeo.NAME``:", "", *_summary(above)]
    if own:
        short = [name.removeprefix(f"{full}.") for name in own]
        lines += [f"Under ``{full}``:", "", *_summary(short, toctree=True)]
    for name in constants:
        lines += _constant(name)
    return "\n".join(lines)


def _head(title: str) -> list[str]:
    return [title, "=" * len(title), ""]


def _summary(names: list[str], *, toctree: bool = False) -> list[str]:
    lines = [".. autosummary::"]
    if toctree:
        lines += ["   :toctree: objects"]
    return [*lines, "", *(f"   ~{name}" for name in names), ""]


def _constant(name: str) -> list[str]:
    """Return the entry of a constant, with its values."""
    value = find(name)
    lines = [f".. py:data:: {name}", ""]
    description = _told(name)
    lines += [f"   {description}", ""] if description else []
    if isinstance(value, Mapping):
        for key, what in value.items():
            summary = getattr(what, "summary", what)
            lines += [f"   - ``{key}``" + (f": {summary}" if isinstance(summary, str) else "")]
    elif isinstance(value, tuple | list | frozenset | set):
        lines += ["   " + ", ".join(f"``{each}``" for each in value)]
    else:
        lines += [f"   ``{getattr(value, '__name__', value)}``"]
    return [*lines, ""]


def _told(name: str) -> str:
    """Return the docstring below a constant's assignment, in any module of its package."""
    from sphinx.errors import PycodeError
    from sphinx.pycode import ModuleAnalyzer

    package, last = ".".join(name.split(".")[:2]), name.rpartition(".")[2]
    for module in [m for m in sys.modules if m == package or m.startswith(f"{package}.")]:
        try:
            docs = ModuleAnalyzer.for_module(module).find_attr_docs()
        except PycodeError:
            continue
        if ("", last) in docs:
            return " ".join(docs["", last]).strip()
    return ""

"""The public names of wgeo and the names of their parameters, as a text that a test compares.

python tests/public.py            print it
python tests/public.py --write    write tests/api.txt
"""

from __future__ import annotations

import importlib
import inspect
import sys
from enum import EnumType
from pathlib import Path
from types import ModuleType
from typing import Any

import wgeo

LIST = Path(__file__).with_name("api.txt")
PACKAGES = (
    *("models", "data", "checkpoints", "training", "trajectory"),
    *("features", "transport", "geodesic", "neural_collapse", "ufm", "comparison", "plots"),
    *("report", "analysis", "runtime", "errors"),
)


def parameters(value: Any) -> str | None:
    """``(a, b=, *, c=)``: names, which are optional, and which go by name alone."""
    if isinstance(value, EnumType):  # its members count; its own parameters are Python's affair
        return None
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return None
    told, named = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not named:
            named = True
            told.append("*")
        optional = parameter.default is not parameter.empty
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
        told.append(stars.get(parameter.kind, "") + parameter.name + "=" * optional)
        named = named or parameter.kind is parameter.VAR_POSITIONAL
    return f"({', '.join(told)})"


def names_of(package: ModuleType) -> list[str]:
    """Public names of a package: its `__all__`, or else its own names without underscore."""
    if hasattr(package, "__all__"):
        return sorted(package.__all__)
    own = [
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == package.__name__
    ]
    return sorted(own)


def lines() -> list[str]:
    """One line per name, and one for every public attribute of a class."""
    found = []
    for place in ("wgeo", *(f"wgeo.{package}" for package in PACKAGES)):
        package = importlib.import_module(place)
        for name in names_of(package):
            value = getattr(package, name)
            if package is not wgeo and getattr(wgeo, name, None) is value:
                continue  # listed once, where users find it first
            if isinstance(value, ModuleType):
                found.append(f"{place}.{name}")
                continue
            found.append(f"{place}.{name}{parameters(value) or ''}")
            if inspect.isclass(value) and value.__module__.startswith("wgeo"):
                found += [f"{place}.{name}.{line}" for line in attributes(value)]
    return found


def attributes(kind: type) -> list[str]:
    told = []
    for name in dir(kind):
        if name.startswith("_") or hasattr(Exception, name) or hasattr(str, name):
            continue
        value = inspect.getattr_static(kind, name)
        if isinstance(value, classmethod | staticmethod):
            value = value.__func__
        defined = getattr(value, "__module__", "wgeo") or "wgeo"
        if callable(value) and defined.startswith("wgeo"):
            told.append(name + (parameters(value) or ""))
        elif isinstance(value, property) or not callable(value):
            told.append(name)
    return told


if __name__ == "__main__":
    text = "\n".join(lines()) + "\n"
    if "--write" in sys.argv:
        LIST.write_text(text, encoding="utf-8")
    else:
        print(text, end="")

"""What was measured before, and whether it is still what would be measured now.

A result is kept with the hash of the code that made it and the fingerprints of the images it read.
It is used again only if both are the same today: comments, docstrings, tables and drawings may
change, and a data set may lie elsewhere.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import wgeo

# Modules of wgeo that measure nothing. Training is here because lab.py's TRAINING stands for it.
APART = {"cli", "plots", "report", "progress.py", "table.py", "training"}
MACHINERY = {"lab", "kept"}


def key_of(cell: Mapping[str, Any]) -> str:
    """Return a short hash of plain values."""
    return hashlib.sha256(json.dumps(cell, sort_keys=True).encode()).hexdigest()[:12]


def code_of(work: Callable[..., Any]) -> str:
    """Return a hash of the code that measures: `work`, what it names in its file, and wgeo.

    Of its file that is every function and constant that it comes to, and every module beside
    lab.py that these import.
    """
    file = Path(inspect.getsourcefile(work) or "")
    return _hash([_package(), *sorted(_reached(file, work.__name__))])


@cache
def _package() -> str:
    root = Path(wgeo.__file__).parent
    files = sorted(p for p in root.rglob("*.py") if p.relative_to(root).parts[0] not in APART)
    return _hash([f"{p.relative_to(root)} {ast.dump(_bare(p))}" for p in files])


def _reached(file: Path, start: str) -> Iterator[str]:
    """The statements at the top of a file that `start` comes to, and the modules that they use."""
    tree = _bare(file)
    stated = {name: node for node in tree.body for name in _defined(node)}
    modules = _imported(tree, file.parent)
    todo, seen = [start], set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in modules:
            yield from _whole(modules[name])
        elif name in stated:
            yield ast.dump(stated[name])
            todo += [node.id for node in ast.walk(stated[name]) if isinstance(node, ast.Name)]


def _whole(file: Path) -> Iterator[str]:
    tree = _bare(file)
    yield ast.dump(tree)
    for module in set(_imported(tree, file.parent).values()):
        yield from _whole(module)


def _defined(node: ast.stmt) -> Iterator[str]:
    """The names that a statement gives a meaning to."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name))


def _imported(tree: ast.Module, folder: Path) -> dict[str, Path]:
    """The names that stand for modules of the experiments, or for something in one."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                module = alias.name if isinstance(node, ast.Import) else node.module or ""
                for file in (folder / f"{module}.py", folder.parent / f"{module}.py"):
                    if file.exists() and module not in MACHINERY:
                        found[alias.asname or alias.name] = file
    return found


def _bare(file: Path) -> ast.Module:
    """A program without comments, docstrings and layout."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            first.value.value = None
    return tree


def _hash(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

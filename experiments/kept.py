"""Keys of saved results, which show whether a result is still valid.

A result is saved with a hash of the code that produced it and the fingerprints of the images that
it read, and is used again only if both are unchanged. Comments, docstrings, tables and figures may
change, and so may the location of a data set.
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

# Parts of wgeo that the hash leaves out. Changes of training are recorded by TRAINING in lab.py.
APART = ("cli", "plots", "report", "runtime/progress.py", "runtime/terminal.py", "training")
MACHINERY = {"lab", "kept"}


def key_of(cell: Mapping[str, Any]) -> str:
    """Return a short hash of plain values."""
    return hashlib.sha256(json.dumps(cell, sort_keys=True).encode()).hexdigest()[:12]


def code_of(work: Callable[..., Any]) -> str:
    """Return a hash of the code that measures: `work`, the code it uses, and wgeo.

    This includes every function and constant of its file that `work` reaches, and every module of
    the experiments that these import, except `lab` and `kept`.
    """
    file = Path(inspect.getsourcefile(work) or "")
    return _hash([_package(), *sorted(_reached(file, work.__name__))])


@cache
def _package() -> str:
    root = Path(wgeo.__file__).parent
    files = sorted(p.relative_to(root) for p in root.rglob("*.py"))
    measuring = [p for p in files if not any(p.is_relative_to(apart) for apart in APART)]
    return _hash([f"{p} {ast.dump(_bare(root / p))}" for p in measuring])


def _reached(file: Path, start: str) -> Iterator[str]:
    """Yield the top-level statements of a file that `start` uses, and those of used modules."""
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
    """Yield the names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name))


def _imported(tree: ast.Module, folder: Path) -> dict[str, Path]:
    """Return the file of every name imported from a module of the experiments."""
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
    """Parse a module, without comments, docstrings (also those of assignments) and layout."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [statement for statement in body if not _is_constant(statement)]
    return tree


def _is_constant(statement: ast.stmt) -> bool:
    """Return whether a statement has no effect, such as a docstring."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _hash(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

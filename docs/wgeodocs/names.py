"""The targets of links for `names` in docstrings.

Docstrings write `Exact`, `Trajectory.embedded` or `tolerance`, without a full path. A parameter or
field of the documented object is not linked. Any other name is searched for among all documented
objects, and the shortest path wins. A name that the docstring's module knows but that has no page,
such as a helper, is not linked. Sphinx warns of all other names.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx import addnodes
from sphinx.util.nodes import make_refnode

from . import api

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

FILE = re.compile(r"[\w./-]+\.(json|npz|py|md|csv)$")


def resolve(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, shown: nodes.Node
) -> nodes.Node | None:
    """Return a link to the page of a Python name; called if Sphinx itself does not find one."""
    if node.get("refdomain") != "py":
        return None
    target = re.sub(r"\(.*\)$", "", node["reftarget"])
    first = target.partition(".")[0]
    around = list(_around(node))
    if FILE.match(target) or any(first in _parameters(found) for found in around):
        return shown
    known = env.domaindata["py"]["objects"]
    package = target.removeprefix("wgeo.")
    if package in api.PACKAGES and target not in known:
        return make_refnode(app.builder, node["refdoc"], f"generated/api/{package}", "", shown)
    # `solve` alone is ambiguous: members are named with their class, as `Exact.solve`.
    members = () if "." in target else ("method", "attribute", "property")
    matches = [
        name
        for name, entry in known.items()
        if entry.objtype not in members and _leads_to(name, target)
    ]
    if matches:
        best = min(matches, key=lambda name: (name.count("."), len(name), name))
        entry = known[best]
        return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, shown)
    return shown if any(first in _words(found) for found in around) else None


def _leads_to(name: str, target: str) -> bool:
    """Whether a documented name is the target, by its end or by the module that defines it."""
    if name == target or name.endswith(f".{target}"):
        return True
    module, _, last = target.rpartition(".")
    return (
        name.endswith(f".{last}")
        and module.startswith("wgeo.")
        and getattr(sys.modules.get(module), last, None) is _found(name)
    )


def _found(name: str) -> Any:
    try:
        return api.find(name)
    except (AttributeError, ImportError):
        return None


def _around(node: nodes.Node) -> Iterator[Any]:
    """Yield the objects whose docstring contains a reference: a method, then its class."""
    place = node.parent
    while place is not None:
        if isinstance(place, addnodes.desc):
            signature = place.next_node(addnodes.desc_signature)
            yield _object(signature.get("module"), signature.get("fullname", ""))
        elif isinstance(place, nodes.row):  # a table that lists names with their first sentences
            for link in place.findall(nodes.reference):
                yield _found(link.get("reftitle", ""))
        place = place.parent


def _object(module: str | None, path: str) -> Any:
    first, *rest = path.split(".")
    found = _found(f"{module}.{first}")
    for name in rest:
        found = inspect.getattr_static(found, name, None)
    return getattr(found, "__func__", found)


def _parameters(found: Any) -> set[str]:
    """Return the names of a function's parameters, or of a class's fields."""
    names = set(getattr(found, "__annotations__", {})) if inspect.isclass(found) else set()
    with suppress(TypeError, ValueError):
        names |= set(inspect.signature(found).parameters)
    return names


def _words(found: Any) -> set[str]:
    """Return all names of the module of an object, and their parameters and members."""
    module = inspect.getmodule(found)
    if module is None:
        return set()
    words = {*vars(module)}
    for each in vars(module).values():
        if each is found or getattr(each, "__module__", "") == module.__name__:
            words |= _parameters(each) | (set(dir(each)) if inspect.isclass(each) else set())
    return words

"""Where `names` in docstrings lead.

Docstrings write `Exact`, `Trajectory.embedded` or `tolerance` as a reader would say them. A name is
looked for among everything documented, the shortest path first; a parameter or attribute of the
object whose docstring this is stays as it is. Anything else is a mistake, and Sphinx says so.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
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
    """Find a Python name's page; called where Sphinx found none."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"].removesuffix("()")
    known = env.domaindata["py"]["objects"]
    matches = [name for name in known if name == target or name.endswith(f".{target}")]
    if matches:
        best = min(matches, key=lambda name: (name.count("."), len(name), name))
        entry = known[best]
        return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, shown)
    if FILE.match(target) or _room(target) or _own(node, target):
        return shown
    return None


def _room(target: str) -> bool:
    return target.rpartition(".")[2] in api.ROOMS


def _own(node: nodes.Node, target: str) -> bool:
    """Whether it is a parameter, field or attribute of what is being documented."""
    place = node.parent
    while place is not None:
        if isinstance(place, addnodes.desc):
            signature = place.next_node(addnodes.desc_signature)
            if signature is not None and target in _words(_object(signature)):
                return True
        place = place.parent
    return False


def _object(signature: addnodes.desc_signature) -> Any:
    module, path = signature.get("module"), signature.get("fullname", "")
    if not module:
        return None
    first, *rest = path.split(".")
    try:
        found = api.find(f"{module}.{first}")
        for name in rest:
            found = inspect.getattr_static(found, name)
    except AttributeError:
        return None
    return getattr(found, "__func__", found)


def _words(found: Any) -> set[str]:
    words = set(dir(found)) if inspect.isclass(found) else set()
    if dataclasses.is_dataclass(found):
        words |= {field.name for field in dataclasses.fields(found)}
    with suppress(TypeError, ValueError):
        words |= set(inspect.signature(found).parameters)
    return words

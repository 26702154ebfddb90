"""Names that a type checker must refuse and accept: `make types` reads this file, nothing runs it.

An ignored error that does not occur is an error itself, so each name refused must not be accepted.
"""

# mypy: warn-unused-ignores

import wgeo

refused = [
    wgeo.nonsense,  # type: ignore[attr-defined]
    wgeo.plots.nonsense,  # type: ignore[attr-defined]
]
accepted = [wgeo.models, wgeo.transport, wgeo.ufm, wgeo.plots.flow, wgeo.collapse]

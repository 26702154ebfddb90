"""Results as NumPy archives without pickles."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array

from ..data.members import check_member, check_members
from ..errors import DataError, RecordError
from ..storage.files import as_path, require_regular
from ..storage.ownership import owned
from ..storage.schema import Part, as_json, read
from ..text import printable
from .result import Status, TransportResult

_VERSION = 1
_SUM_TOLERANCE = 1e-9  # error of the sum of weights
_PLAN = ("plan_data", "plan_indices", "plan_indptr", "plan_shape")


class Saved(Part):
    """The numbers and strings of a saved result."""

    version: int
    cost: float | None
    lower: float | None
    upper: float | None
    seconds: float | None
    divergence: float | None
    status: str
    solver: str
    stats: Mapping[str, Any]


_FIELDS = tuple(each.name for each in fields(Saved) if each.name not in ("json", "version"))


def save(result: TransportResult, path: str | os.PathLike[str]) -> None:
    """Write a result to a file; see `TransportResult.save`."""
    file_path = as_path(path, "path")
    values = {name: getattr(result, name) for name in _FIELDS}
    about = json.dumps(as_json({**values, "version": _VERSION}))
    arrays: dict[str, np.ndarray] = {"about": np.frombuffer(about.encode(), np.uint8)}
    if isinstance(result.coupling, np.ndarray):
        arrays["permutation"] = result.coupling
    elif result.coupling is not None:
        plan = result.plan
        parts = (plan.data, plan.indices, plan.indptr, np.array(plan.shape))
        arrays |= dict(zip(_PLAN, parts, strict=True))
    for names, pair in (("fg", result.potentials), ("ab", result.weights)):
        arrays |= dict(zip(names, pair or (), strict=False))
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    with owned(file_path.parent) as folder:
        folder.write({file_path.name: content.getvalue()})


def load(path: str | os.PathLike[str]) -> TransportResult:
    """Read a result from a file; see `TransportResult.load`."""
    file_path = as_path(path, "path")
    shown_path = printable(file_path, 1000)
    try:
        return _result(_arrays(file_path))
    except FileNotFoundError as error:
        raise RecordError(
            f"No result at {shown_path}; write one with `result.save(path)`."
        ) from error
    except MemoryError as error:
        raise RecordError(f"{shown_path} declares more data than fits in memory.") from error
    except Exception as error:  # zipfile and numpy raise errors of many types on damaged archives
        reason = printable(str(error) or type(error).__name__)
        raise RecordError(f"{shown_path} is not a result that wgeo wrote: {reason}") from error


def _arrays(path: os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read all arrays of an archive, unless the sizes of its members are implausible."""
    require_regular(path)
    with open(path, "rb") as file:
        with zipfile.ZipFile(file) as members:
            check_members(members, os.fstat(file.fileno()).st_size)
            for info in members.infolist():
                check_member(info, unchecked_bytes=2**26)
        file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy returns members of other formats as bytes
            raise DataError(f"{name!r} is not a NumPy array")
    return arrays


def _result(arrays: Mapping[str, np.ndarray]) -> TransportResult:
    about = json.loads(arrays["about"].astype(np.uint8).tobytes())
    for fault in read(Saved, about)[1]:
        raise DataError(f"{fault.location} is damaged")
    if about["version"] != _VERSION:
        raise DataError(
            f"its version is {about['version']}, but this wgeo reads version {_VERSION}"
        )
    values = {name: about[name] for name in _FIELDS}
    for name in ("cost", "lower", "upper", "seconds"):
        if values[name] is None or values[name] < 0:
            raise DataError(f"{name} is not a nonnegative number")
    potentials, weights = _pair(arrays, "fg"), _pair(arrays, "ab")
    for w in weights or ():
        if w.min(initial=0) < 0 or abs(w.sum() - 1) > _SUM_TOLERANCE:
            raise DataError("its weights are negative, or do not sum to 1")
    coupling = _coupling(arrays)
    shapes = {tuple(map(len, pair)) for pair in (potentials, weights) if pair is not None}
    if coupling is not None:
        shapes.add(coupling.shape if coupling.ndim == 2 else coupling.shape * 2)
    if len(shapes) > 1:
        raise DataError("its arrays have inconsistent sizes")
    values["status"] = Status(values["status"])
    return TransportResult(**values, coupling=coupling, potentials=potentials, weights=weights)


def _pair(arrays: Mapping[str, np.ndarray], names: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return two vectors of finite float64 numbers, or None if the archive has neither."""
    if not any(name in arrays for name in names):
        return None
    first, second = (_vector(arrays[name], "f") for name in names)
    return first, second


def _vector(array: np.ndarray, kind: str) -> Float[np.ndarray, " k"] | np.ndarray:
    """Return a vector of finite float64 numbers (kind ``f``) or of int64 (kind ``i``)."""
    finite = array.dtype.kind == kind and bool(np.isfinite(array).all())
    if array.ndim != 1 or not finite:
        raise DataError("an array has the wrong shape or type, or contains NaN or infinity")
    return array.astype(np.float64 if kind == "f" else np.int64)


def _coupling(arrays: Mapping[str, np.ndarray]) -> Any:
    """Return the permutation or the plan of an archive, or None if it has neither."""
    if "permutation" in arrays:
        permutation = _vector(arrays["permutation"], "i")
        if not np.array_equal(np.sort(permutation), np.arange(len(permutation))):
            raise DataError("its coupling is not a permutation")
        return permutation
    if not any(name in arrays for name in _PLAN):
        return None
    data = _vector(arrays["plan_data"], "f")
    indices, indptr, shape = (_vector(arrays[name], "i") for name in _PLAN[1:])
    if len(shape) != 2 or len(indptr) != shape[0] + 1 or shape[1] < 1:
        raise DataError("its plan has an invalid shape")
    plan = csr_array((data, indices, indptr), shape=tuple(shape.tolist()))
    plan.check_format(full_check=True)
    return plan

"""`distances`: W2 between all pairs of clouds, each with its interval."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float

from .. import __version__
from ..arrays.checks import as_numpy, as_points
from ..arrays.rows import is_memmapped, row_ranges
from ..errors import ArgumentError, FeatureError, RecordError
from ..results import Result
from ..runtime.processes import is_rank_zero, on_rank_zero
from ..storage.files import as_path, require_regular
from ..storage.ownership import owned
from ..text import counted, printable
from ..trajectory import Trajectory
from .chains import map_pairs
from .entry import Solver
from .exact import Exact
from .result import Status, TransportResult

_SECONDS = 5.0  # between writes; a killed process loses pairs solved since the last write


@dataclass(frozen=True, eq=False, repr=False)
class Distances(Result):
    """W2 between all pairs of clouds, as matrices.

    ``to_pandas()`` is a table with a row per pair: ``source``, ``target``, ``distance``, ``lower``,
    ``upper``, ``certified``. If the clouds are compared with each other, each pair is listed once.

    Attributes
    ----------
    names, other_names : tuple of str
        Names of the clouds in the rows, and of those in the columns.
    distance : ndarray, (B, C)
        W2 as the solver computes it. Without `others` the matrix is symmetric, with zeros on the
        diagonal.
    lower, upper : ndarray, (B, C)
        Intervals that contain W2.
    certified : ndarray of bool, (B, C)
        Whether the relative width of the interval is within the solver's tolerance.
    symmetric : bool
        Whether the clouds are compared with each other.
    solver : str
        Name of the solver.
    seconds : float
        Wall-clock time of the whole call.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> line = np.arange(4.0)
    >>> result = wgeo.distances({"a": line, "b": line + 3}, {"c": line - 1})
    >>> result.names, result.other_names, result.distance.round(6).tolist()
    (('a', 'b'), ('c',), [[1.0], [4.0]])
    >>> result.to_dict()["pairs"][1]["certified"]
    True
    """

    names: tuple[str, ...]
    other_names: tuple[str, ...]
    distance: Float[np.ndarray, "B C"] = field(repr=False)
    lower: Float[np.ndarray, "B C"] = field(repr=False)
    upper: Float[np.ndarray, "B C"] = field(repr=False)
    certified: Bool[np.ndarray, "B C"] = field(repr=False)
    symmetric: bool
    solver: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values, ready for JSON, and the list of ``pairs``."""
        return {**super().to_dict(), "pairs": self._table()}

    def _table(self) -> list[dict[str, Any]]:
        return [
            {
                "source": self.names[i],
                "target": self.other_names[j],
                "distance": float(self.distance[i, j]),
                "lower": float(self.lower[i, j]),
                "upper": float(self.upper[i, j]),
                "certified": bool(self.certified[i, j]),
            }
            for i, j in _pairs(self.distance.shape, self.symmetric)
        ]

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {"": name, **dict(zip(self.other_names, row.tolist(), strict=True))}
            for name, row in zip(self.names, self.distance, strict=True)
        ]

    def _description(self) -> str:
        pairs = [self.certified[pair] for pair in _pairs(self.distance.shape, self.symmetric)]
        others = "" if self.symmetric else f" and {counted(len(self.other_names), 'other cloud')}"
        return (
            f"W2 between {counted(len(self.names), 'cloud')}{others}; "
            f"{sum(map(int, pairs))} of {counted(len(pairs), 'pair')} certified, by {self.solver} "
            f"in {self.seconds:.2g} s"
        )


def distances(
    clouds: Any,
    others: Any = None,
    *,
    solver: Solver | None = None,
    store: str | os.PathLike[str] | None = None,
) -> Distances:
    """Measure W2 between all pairs of clouds, each with an interval that contains it.

    Pairs are solved concurrently on the cores of the CPU; Ctrl-C interrupts them all. Plans are not
    kept: use `wasserstein` for the plan of a pair.

    Parameters
    ----------
    clouds : sequence of array_like, mapping, array_like (B, n, d), or Trajectory
        Clouds of one width, each (n_b, d), with any numbers of points. The keys of a mapping are
        their names; the clouds of a trajectory are its layers. A sequence or mapping may also
        contain trajectories, such as those of several networks; the names of their layers are then
        ``network: layer``.
    others : like `clouds`, optional
        Clouds to compare `clouds` with. By default, `clouds` are compared with each other.
    solver : Solver, optional
        Default `Exact`.
    store : path, optional
        A JSON file of solved pairs, created if needed. Pairs that it contains are not solved
        again, so an interrupted call can be continued, and clouds can be added. If a cloud, the
        solver, its options or the version of wgeo has changed, the pair is solved again.

    Returns
    -------
    Distances
        ``distance``, ``lower`` and ``upper`` are (B, B), or (B, C) for C others.

    Raises
    ------
    ArgumentError
        No clouds, an array that is not (B, n, d), or a `store` with a solver whose ``repr`` does
        not contain its options.
    FeatureError
        NaN, infinity, an empty cloud, or clouds of different widths; the message names the cloud.
    RecordError
        wgeo did not write the file `store`, or the file is damaged.
    WgeoError
        The solver failed. The error has the type that the solver raised, and its message names the
        clouds.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> line = np.arange(4.0)
    >>> result = wgeo.distances({"a": line, "b": line + 3, "c": 2 * line})
    >>> result.distance.round(3).tolist()
    [[0.0, 3.0, 1.871], [3.0, 0.0, 1.871], [1.871, 1.871, 0.0]]
    """
    start_time = time.perf_counter()
    solver = Exact() if solver is None else solver
    rows = _clouds(clouds, "clouds")
    columns = rows if others is None else _clouds(others, "others")
    _require_one_width([*rows, *columns])
    symmetric = others is None
    indices = list(_pairs((len(rows), len(columns)), symmetric))
    solved = _SolvedPairs(store, solver)
    found = {(i, j): solved.get(rows[i].points, columns[j].points) for i, j in indices}
    missing = [pair for pair, summary in found.items() if summary is None]
    labeled_pairs = [
        (f"{rows[i].label} -> {columns[j].label}", rows[i].points, columns[j].points)
        for i, j in missing
    ]
    arrays = {id(cloud.points): cloud.points for cloud in (*rows, *columns)}
    nbytes = sum(array.nbytes for array in arrays.values() if not is_memmapped(array))

    def keep(result: TransportResult, x: np.ndarray, y: np.ndarray) -> _PairSummary:
        certified = result.status is Status.CERTIFIED
        summary = _PairSummary(result.distance, result.lower, result.upper, certified)
        solved.add(x, y, summary)
        return summary

    try:
        summaries = map_pairs(keep, labeled_pairs, solver, feature_bytes=nbytes)
    finally:  # after an interrupt, the next call continues here
        solved.write()
    values = np.zeros((4, len(rows), len(columns)))
    values[3] = 1.0  # the diagonal is exact
    for (i, j), summary in {**found, **dict(zip(missing, summaries, strict=True))}.items():
        values[:, i, j] = summary
        if symmetric:
            values[:, j, i] = summary
    return Distances(
        names=tuple(cloud.name for cloud in rows),
        other_names=tuple(cloud.name for cloud in columns),
        distance=values[0],
        lower=values[1],
        upper=values[2],
        certified=values[3] > 0,
        symmetric=symmetric,
        solver=solver.name,
        seconds=time.perf_counter() - start_time,
    )


class _Cloud(NamedTuple):
    """A cloud, its name, and its name in error messages."""

    name: str
    label: str
    points: Float[np.ndarray, "n d"]


def _clouds(value: Any, argument: str) -> list[_Cloud]:
    """Check an argument of `distances` and return its clouds."""
    if isinstance(value, Trajectory):
        return _layers(value)
    is_array = isinstance(value, np.ndarray | torch.Tensor)
    if isinstance(value, Mapping):
        names, values = [str(name) for name in value], list(value.values())
    elif (is_array and value.ndim != 3) or not (is_array or isinstance(value, Sequence)):
        given = f"an array of shape {tuple(value.shape)}" if is_array else type(value).__name__
        raise ArgumentError(
            f"{argument} must be a list of clouds (n, d), an array (B, n, d), a mapping or a "
            f"trajectory, not {given}."
        )
    else:
        names, values = [str(k) for k in range(len(value))], list(value)
    if not values:
        raise ArgumentError(f"{argument} is empty: pass at least one cloud.")
    found: list[_Cloud] = []
    for name, points in zip(names, values, strict=True):
        if isinstance(points, Trajectory):
            found += _layers(points, name)
        else:
            label = f"{argument}[{name}]"
            found.append(_Cloud(name, label, as_numpy(as_points(points, name=label))))
    return found


def _layers(traj: Trajectory, network: str | None = None) -> list[_Cloud]:
    """Return the layers of a trajectory, named ``network: layer`` if `network` is given."""
    prefix, of = ("", "") if network is None else (f"{network}: ", f" of {network!r}")
    return [
        _Cloud(f"{prefix}{layer.name}", f"layer {layer.name!r}{of}", layer.features)
        for layer in traj.layers
    ]


def _require_one_width(clouds: Sequence[_Cloud]) -> None:
    first = clouds[0]
    for cloud in clouds:
        if cloud.points.shape[1] != first.points.shape[1]:
            raise FeatureError(
                f"{first.label} has {first.points.shape[1]} features and {cloud.label} "
                f"{cloud.points.shape[1]}: W2 needs one space. Compare layers of one stage, pool "
                "to one width, or embed them (`traj.embedded`)."
            )


def _pairs(shape: tuple[int, ...], symmetric: bool) -> Iterator[tuple[int, int]]:
    """Return the pairs to solve: only those above the diagonal if the matrix is symmetric."""
    rows, columns = shape
    return ((i, j) for i in range(rows) for j in range(i + 1 if symmetric else 0, columns))


class _PairSummary(NamedTuple):
    """The values of a pair that `distances` keeps."""

    distance: float
    lower: float
    upper: float
    certified: bool


class _SolvedPairs:
    """Solved pairs in a JSON file; without a path, no pair is found or written.

    A pair is identified by the checksums of both clouds, the solver with its options, and the
    version of wgeo.
    """

    def __init__(self, path: str | os.PathLike[str] | None, solver: Solver) -> None:
        self._path = None if path is None else as_path(path, "store")
        if self._path and type(solver).__repr__ is object.__repr__:
            raise ArgumentError(
                f"`store=` needs to know the solver's options: give {type(solver).__name__} a "
                "`__repr__` that contains them, as a dataclass has."
            )
        self._solver = (
            f"{type(solver).__module__}.{type(solver).__qualname__} {solver!r} {__version__}"
        )
        self._checksums: dict[int, str] = {}
        self._pairs: dict[str, _PairSummary] = on_rank_zero(self._opened)
        self._lock = threading.Lock()
        self._written = time.monotonic()
        self._unwritten = False

    def get(self, x: np.ndarray, y: np.ndarray) -> _PairSummary | None:
        """Return a pair's values, or None if it has not been solved."""
        return self._pairs.get(self._key(x, y)) if self._path else None

    def add(self, x: np.ndarray, y: np.ndarray, summary: _PairSummary) -> None:
        """Add a pair; the file is written at most every few seconds, and by `write`."""
        if self._path is None:
            return
        with self._lock:
            self._pairs[self._key(x, y)], self._unwritten = summary, True
            if time.monotonic() > self._written + _SECONDS:
                self._write()

    def write(self) -> None:
        """Write all pairs to the file, unless it already contains them."""
        with self._lock:
            self._write()

    def _key(self, x: np.ndarray, y: np.ndarray) -> str:
        pair = f"{self._checksum(x)} {self._checksum(y)} {self._solver}"
        return hashlib.sha256(pair.encode()).hexdigest()

    def _checksum(self, cloud: np.ndarray) -> str:
        if id(cloud) not in self._checksums:
            content = hashlib.sha256(f"{cloud.dtype.str} {cloud.shape}".encode())
            for rows in row_ranges(len(cloud), cloud.shape[1]):
                content.update(np.ascontiguousarray(cloud[rows]).data)
            self._checksums[id(cloud)] = content.hexdigest()
        return self._checksums[id(cloud)]

    def _opened(self) -> dict[str, _PairSummary]:
        """Return the pairs in the file, after checking that wgeo may replace the file."""
        if self._path is None:
            return {}
        with owned(self._path.parent) as folder:
            folder.require_writable(self._path.name)
            return _read(self._path)

    def _write(self) -> None:
        if self._path is None or not self._unwritten or not is_rank_zero():
            return
        with owned(self._path.parent) as folder:
            # Another process may have added pairs since this one read the file.
            self._pairs = {**_read(self._path), **self._pairs}
            folder.write({self._path.name: json.dumps({"pairs": self._pairs}, indent=0)})
        self._written, self._unwritten = time.monotonic(), False


def _read(path: os.PathLike[str]) -> dict[str, _PairSummary]:
    try:
        require_regular(path)
        with open(path, encoding="utf-8") as file:
            pairs = json.load(file)["pairs"]
        return {str(key): _summary(*values) for key, values in pairs.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RecordError(
            f"{printable(path, 1000)} does not contain distances that wgeo wrote "
            f"({printable(str(error))}). Choose another `store=`."
        ) from error


def _summary(distance: Any, lower: Any, upper: Any, certified: Any) -> _PairSummary:
    if not (0 <= lower <= upper and distance >= 0 and certified in (True, False)):
        raise ValueError("a pair has impossible values")
    return _PairSummary(float(distance), float(lower), float(upper), bool(certified))

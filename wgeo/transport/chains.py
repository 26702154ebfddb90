"""Optimal transport over every block and every segment of a trajectory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from ..errors import FeatureError, WgeoError
from ..results import Result
from ..runtime.memory import available_bytes, limited_size
from ..runtime.threads import thread_map
from ..text import counted
from ..trajectory import Trajectory, as_trajectory
from .entry import Solver, wasserstein
from .exact import Exact
from .point_clouds import shared_statistics
from .result import TransportResult

R = TypeVar("R")

_COST_BLOCKS = 2**30  # bytes for a solver's part of the cost matrix if memory is not limited


@dataclass(frozen=True, eq=False, repr=False)
class Chain(Result):
    """W2 over the blocks of a network, and from end to end of its segments.

    ``to_pandas()`` has a row per block, then a row per segment.

    Attributes
    ----------
    blocks : tuple of TransportResult
        One for each of ``traj.blocks``.
    ends : tuple of TransportResult
        From the first to the last layer of each of ``traj.segments``.
    block_layers, end_layers : tuple of (str, str)
        Names of the two layers of each result.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> line = np.arange(4.0)[:, None]
    >>> traj = wgeo.Trajectory.from_arrays([line, line + 1, line + 3], [0, 0, 1, 1])
    >>> result = wgeo.transport.chain(traj)
    >>> result.block_layers[1], round(result.blocks[1].distance, 6)
    (('layer1', 'layer2'), 2.0)
    >>> result.end_layers[0], round(result.ends[0].distance, 6)
    (('layer0', 'layer2'), 3.0)
    """

    blocks: tuple[TransportResult, ...]
    ends: tuple[TransportResult, ...]
    block_layers: tuple[tuple[str, str], ...]
    end_layers: tuple[tuple[str, str], ...]

    def _table(self) -> list[dict[str, Any]]:
        pairs = [("block", self.blocks, self.block_layers), ("segment", self.ends, self.end_layers)]
        return [
            {"part": part, "source": source, "target": target, **result._table()[0]}
            for part, results, layers in pairs
            for result, (source, target) in zip(results, layers, strict=True)
        ]

    def _rows(self) -> list[dict[str, Any]]:
        columns = ("part", "source", "target", "distance", "lower", "upper", "status")
        return [{name: row[name] for name in columns} for row in self._table()]

    def _description(self) -> str:
        return (
            f"W2 over {counted(len(self.blocks), 'block')}, and from end to end of "
            f"{counted(len(self.ends), 'segment')}"
        )

    def _curve(self) -> tuple[str, list[float]]:
        return "W2 of the blocks, in order", [block.distance for block in self.blocks]


@dataclass(frozen=True, eq=False)
class _Problem:
    """Two clouds to transport, with a name for error messages."""

    name: str
    x: Float[np.ndarray, "n d"]
    y: Float[np.ndarray, "m d"]

    @property
    def key(self) -> tuple[int, int]:
        """The identities of the two arrays; problems with equal keys are solved once."""
        return id(self.x), id(self.y)


def solver_bytes(entries: int) -> int:
    """Return the approximate bytes that a solver needs for two clouds of `entries` numbers in all.

    It stores copies of both clouds and a part of the costs.
    """
    return 12 * entries + limited_size(_COST_BLOCKS, 1 / 8)


def chain(traj: Trajectory, solver: Solver | None = None) -> Chain:
    """Measure W2 over every block of a trajectory, and from end to end of every segment.

    If a segment is a single block, their common pair is solved once. Pairs are solved concurrently
    on the cores of the CPU; Ctrl-C interrupts them all.

    Parameters
    ----------
    traj : Trajectory
    solver : Solver, optional
        Default `Exact`.

    Returns
    -------
    Chain

    Raises
    ------
    FeatureError
        The memory limit is too small for a single pair.
    WgeoError
        The solver failed. The error has the type that the solver raised, and its message names
        the layers and their shapes.

    Examples
    --------
    On a geodesic the blocks' distances sum to the distance from end to end:

    >>> import numpy as np
    >>> import wgeo
    >>> line = np.arange(4.0)[:, None]
    >>> traj = wgeo.Trajectory.from_arrays([line, line + 1, line + 3], [0, 0, 1, 1])
    >>> result = wgeo.transport.chain(traj)
    >>> round(sum(block.distance for block in result.blocks) / result.ends[0].distance, 6)
    1.0
    """
    traj = as_trajectory(traj)
    solver = Exact() if solver is None else solver
    blocks = [(f"{b.source} -> {b.target}", b.x, b.y) for b in traj.blocks]
    ends = [(f"{s.names[0]} -> {s.names[-1]}", s.arrays[0], s.arrays[-1]) for s in traj.segments]
    results = solve_pairs([*blocks, *ends], solver, feature_bytes=traj.nbytes)
    return Chain(
        blocks=tuple(results[: len(blocks)]),
        ends=tuple(results[len(blocks) :]),
        block_layers=tuple((b.source, b.target) for b in traj.blocks),
        end_layers=tuple((s.names[0], s.names[-1]) for s in traj.segments),
    )


def solve_pairs(
    pairs: Sequence[tuple[str, np.ndarray, np.ndarray]], solver: Solver, *, feature_bytes: int = 0
) -> list[TransportResult]:
    """Measure W2 between pairs (name for error messages, x, y), as `chain` does.

    `feature_bytes` is the memory that the features use in this process. If memory is limited, fewer
    pairs are then solved concurrently.
    """
    return map_pairs(lambda result, *_: result, pairs, solver, feature_bytes=feature_bytes)


def map_pairs(
    keep: Callable[[TransportResult, np.ndarray, np.ndarray], R],
    pairs: Sequence[tuple[str, np.ndarray, np.ndarray]],
    solver: Solver,
    *,
    feature_bytes: int = 0,
) -> list[R]:
    """Return ``keep(result, x, y)`` for each pair; only what `keep` returns stays in memory."""
    problems = [_Problem(*pair) for pair in pairs]
    distinct = {problem.key: problem for problem in problems}
    largest = max((solver_bytes(x.size + y.size) for _, x, y in pairs), default=1)
    clouds = {id(cloud): cloud for problem in problems for cloud in (problem.x, problem.y)}
    with shared_statistics(clouds.values()):
        results = thread_map(
            lambda problem: keep(_solve(problem, solver), problem.x, problem.y),
            list(distinct.values()),
            "optimal transport",
            max_threads=_max_concurrent(largest, feature_bytes),
        )
    by_key = dict(zip(distinct, results, strict=True))
    return [by_key[problem.key] for problem in problems]


def _max_concurrent(size: int, feature_bytes: int) -> int | None:
    """Return the number of problems of `size` bytes that fit in memory, or None without a limit."""
    available = available_bytes()
    if available is None:
        return None
    available -= feature_bytes
    if size > available:
        raise FeatureError(
            f"Transport between two layers needs about {size / 2**30:.1f} GiB; "
            f"{max(available, 0) / 2**30:.1f} GiB is available. Allow more memory, use fewer "
            "samples, or project the features."
        )
    return available // size


def _solve(problem: _Problem, solver: Solver) -> TransportResult:
    try:
        return wasserstein(problem.x, problem.y, solver=solver)
    except WgeoError as error:
        shapes = f"{tuple(problem.x.shape)} to {tuple(problem.y.shape)}"
        raise type(error)(f"Transport {problem.name} ({shapes}): {error}") from error

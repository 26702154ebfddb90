"""Every block of a trajectory, and every segment end to end, solved once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float

from ..arrays import as_points
from ..errors import WgeoError
from ..progress import track
from ..trajectory import Trajectory
from .entry import Solver, wasserstein
from .exact import Exact
from .result import TransportResult


@dataclass(frozen=True, eq=False)
class Chain:
    """Transport along a network.

    Attributes
    ----------
    blocks : tuple of TransportResult
        One for each of ``traj.blocks``.
    ends : tuple of TransportResult
        From the first to the last layer of each of ``traj.segments``.
    """

    blocks: tuple[TransportResult, ...]
    ends: tuple[TransportResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, ready for JSON."""
        return {
            "blocks": [result.to_dict() for result in self.blocks],
            "ends": [result.to_dict() for result in self.ends],
        }


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two layers to solve between, and what to call them in an error."""

    what: str
    x: Float[Any, "n d"]
    y: Float[Any, "n d"]

    @property
    def key(self) -> tuple[int, int]:
        return id(self.x), id(self.y)


def chain(traj: Trajectory, solver: Solver | None = None) -> Chain:
    """Measure W2 over every block and every segment of a trajectory.

    A pair that stands twice (a segment of one block, end to end) is solved once. Pairs are
    independent, and are spread over the processor's cores.

    Parameters
    ----------
    traj : Trajectory
    solver : Solver, optional
        Default `Exact`.

    Raises
    ------
    WgeoError
        Of the kind that the solver raised, naming the layers.
    """
    solver = Exact() if solver is None else solver
    blocks = [_Pair(f"{b.source} -> {b.target}", b.x, b.y) for b in traj.blocks]
    ends = [
        _Pair(f"{s.names[0]} -> {s.names[-1]}", s.arrays[0], s.arrays[-1]) for s in traj.segments
    ]
    todo = {pair.key: pair for pair in [*blocks, *ends]}
    solved = _spread(lambda pair: _solve(pair, solver), list(todo.values()))
    results = dict(zip(todo, solved, strict=True))
    return Chain(
        blocks=tuple(results[pair.key] for pair in blocks),
        ends=tuple(results[pair.key] for pair in ends),
    )


def _solve(pair: _Pair, solver: Solver) -> TransportResult:
    try:
        x, y = as_points(pair.x, name="x"), as_points(pair.y, name="y")
        return wasserstein(x, y, solver=solver)
    except WgeoError as error:
        raise type(error)(f"Transport {pair.what}: {error}") from error


def _spread(work: Callable[[_Pair], TransportResult], pairs: list[_Pair]) -> list[TransportResult]:
    """Work in as many threads as torch would use; on an error or Ctrl-C drop what is waiting."""
    threads = max(1, min(torch.get_num_threads(), len(pairs)))
    pool = ThreadPoolExecutor(threads)
    waiting: list[Future[TransportResult]] = [pool.submit(work, pair) for pair in pairs]
    try:
        return [future.result() for future in track(waiting, "optimal transport")]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)

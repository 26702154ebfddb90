"""Every block of a trajectory, and every segment end to end, solved once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ..errors import FeatureError, WgeoError
from ..runtime.memory import available_bytes, limited_size
from ..runtime.threads import thread_map
from ..trajectory import Trajectory, as_trajectory
from .entry import Solver, wasserstein
from .exact import Exact
from .result import TransportResult

_BLOCKS = 2**30  # bytes a solver holds beside the clouds, where nothing bounds them


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
    x: Float[np.ndarray, "n d"]
    y: Float[np.ndarray, "n d"]

    @property
    def bytes(self) -> int:
        """About what a solver holds: copies of both clouds, and its blocks."""
        return 12 * (self.x.size + self.y.size) + limited_size(_BLOCKS, 1 / 8)

    @property
    def key(self) -> tuple[int, int]:
        return id(self.x), id(self.y)


def chain(traj: Trajectory, solver: Solver | None = None) -> Chain:
    """Measure W2 over every block and every segment of a trajectory.

    A pair that stands twice (a segment of one block, end to end) is solved once. No pair starts
    from another's potentials: measured on ResNet-20, the block before is a worse start for `Exact`
    than the network's own pairing (up to five times slower), and answers would depend on the order
    of solving. Pairs are spread over the processor's cores; Ctrl-C stops them all.

    Parameters
    ----------
    traj : Trajectory
    solver : Solver, optional
        Default `Exact`.

    Raises
    ------
    WgeoError
        Of the kind that the solver raised, naming the layers and their shapes.
    """
    traj = as_trajectory(traj)
    solver = Exact() if solver is None else solver
    blocks = [_Pair(f"{b.source} -> {b.target}", b.x, b.y) for b in traj.blocks]
    ends = [
        _Pair(f"{s.names[0]} -> {s.names[-1]}", s.arrays[0], s.arrays[-1]) for s in traj.segments
    ]
    results = _solved([*blocks, *ends], solver, traj.held)
    return Chain(blocks=tuple(results[: len(blocks)]), ends=tuple(results[len(blocks) :]))


def solve_pairs(
    pairs: Sequence[tuple[str, np.ndarray, np.ndarray]], solver: Solver, *, held: int = 0
) -> list[TransportResult]:
    """Measure W2 between pairs of clouds, (what to call it in an error, x, y), as `chain` does.

    `held` is how many bytes of features this process holds already.
    """
    return _solved([_Pair(*pair) for pair in pairs], solver, held)


def _solved(pairs: Sequence[_Pair], solver: Solver, held: int) -> list[TransportResult]:
    todo = {pair.key: pair for pair in pairs}
    solved = spread(
        lambda pair: _solve(pair, solver),
        list(todo.values()),
        "optimal transport",
        most=_at_once(max((pair.bytes for pair in todo.values()), default=1), held),
    )
    results = dict(zip(todo, solved, strict=True))
    return [results[pair.key] for pair in pairs]


def _at_once(size: int, held: int) -> int | None:
    """How many pairs of a size fit beside the features (if any number, None).

    Raises
    ------
    FeatureError
        Not even one.
    """
    left = available_bytes()
    if left is None:
        return None
    left -= held
    if size > left:
        raise FeatureError(
            f"Transport between two layers takes about {size / 2**30:.1f} GiB, which the memory "
            "allowed does not have. Allow more, take fewer samples, or project the features."
        )
    return left // size


def _solve(pair: _Pair, solver: Solver) -> TransportResult:
    try:
        return wasserstein(pair.x, pair.y, solver=solver)
    except WgeoError as error:
        shapes = f"{tuple(pair.x.shape)} to {tuple(pair.y.shape)}"
        raise type(error)(f"Transport {pair.what} ({shapes}): {error}") from error

"""What stands beside the measured figures: a reference network, and the Brenier test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..checkpoints import Network
from ..errors import ArgumentError, ProcessError, RecordError, WgeoError
from ..features.network import inputs, module_of
from ..features.residual_blocks import evaluating
from ..geodesic import straighter_than
from ..geodesic.gradient_maps import BrenierResult, brenier_blocks
from ..geodesic.judge import shuffled
from ..trajectory import Trajectory

REFERENCES = ("init", "shuffled", "none")
_STATISTIC = "line_shape_ratio"  # per sample, so that the test needs no transport
_FEWEST_POINTS, _MOST_POINTS = 4, 8  # images of the Brenier test unless asked
_OPERATIONS = 4e8  # of a forward pass of more than the fewest
_MOST_OPERATIONS = 3e8  # of one image beyond which the test has to be asked for
_PRECISION = {"probes": 4, "tolerance": 1e-2}  # relative; the spread over points is larger


def checked_reference(reference: Any) -> Any:
    """Return what straightness is tested against: a name of `REFERENCES`, a network or features.

    Raises
    ------
    ArgumentError
        None of these.
    """
    if reference is None:
        return "none"
    known = Network | nn.Module | Trajectory
    if isinstance(reference, known) or reference in REFERENCES:
        return reference
    raise ArgumentError(
        f"Unknown reference {reference!r}; choose {', '.join(REFERENCES)}, or give a network."
    )


def reference_test(
    traj: Trajectory,
    reference: str | Network | nn.Module | Trajectory,
    seed: int,
    compared: Callable[[], dict[str, Any]] | None = None,
) -> dict[str, Any] | None:
    """Test whether a network is straighter than a reference, segment by segment.

    Parameters
    ----------
    traj : Trajectory
    reference : as `checked_reference` returns it
    seed : int
    compared : callable, optional
        Compares with networks with fresh weights (`fresh_networks`), or traces another network and
        compares with it; without it there are features alone.

    Returns
    -------
    dict or None
        ``kind``; of fresh weights (``init``) what `fresh_networks` returns, and of any other
        reference ``tests``, over images, of these two networks, a row for each segment of at least
        two blocks; ``skipped``, why there is no test.
    """
    if reference == "none":
        return None
    kind = reference if isinstance(reference, str) else "network"
    try:
        if compared is not None and kind != "shuffled":
            return {"kind": kind, **compared()}
        if kind == "init":
            raise ArgumentError(
                "Features alone have no network to give fresh weights. Store those of an untrained "
                "checkpoint too, and give them as the reference."
            )
        other = reference if isinstance(reference, Trajectory) else shuffled(traj, seed=seed)
        return {"kind": kind, **over_images(traj, other, seed)}
    except WgeoError as error:  # a reference that says nothing is no reason to lose the analysis
        if kind == "network" or isinstance(error, ProcessError | RecordError):
            raise
        return {"kind": kind, "skipped": str(error)}


def over_images(traj: Trajectory, other: Trajectory, seed: int) -> dict[str, Any]:
    """Compare two networks on these images, in the segments of at least two blocks."""
    tests = straighter_than(traj, other, statistic=_STATISTIC, seed=seed)
    return {"tests": [test.to_dict() for test in tests if len(test.layers) > 2]}


def brenier_test(
    traj: Trajectory,
    net: Network | nn.Module,
    images: Any,
    points: int | None,
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """Test every block, and every segment's run of blocks, for being the gradient of a convex map.

    Parameters
    ----------
    points : int or None
        Number of images; None for as many as are cheap, see `_affordable_points`.

    Returns
    -------
    dict
        ``points``; ``skipped``, if it was left out, why; ``blocks`` and ``segments``, aligned with
        the trajectory's: ``asymmetry``, ``min_eigenvalue`` and all else under ``brenier``, that of
        a segment with the ``blocks`` in a row that were tested; empty where the space changes.
    """
    names = [block.target for block in traj.blocks]
    try:
        count = _affordable_points(net, images) if points is None else points
        rows = np.unique(np.linspace(0, len(traj) - 1, min(count, len(traj))).astype(int))
        x = inputs(net, images, rows)
        found = brenier_blocks(
            module_of(net), x, names, bootstrap=bootstrap, seed=seed, **_PRECISION
        )
    except WgeoError as reason:
        if points:  # as was asked
            raise
        none: list[dict[str, Any]] = [{}]
        return {
            "points": 0,
            "skipped": str(reason),
            "blocks": none * len(names),
            "segments": none * len(traj.segments),
        }
    last = {run[-1]: (run, result) for run, result in found.segments.items()}
    return {
        "points": len(rows),
        "blocks": [_facts(found.blocks.get(name)) for name in names],
        "segments": [
            _facts(result, blocks=list(run))
            for segment in traj.segments
            for run, result in [last.get(segment.names[-1], ((), None))]
        ],
    }


def _affordable_points(net: Network | nn.Module, images: Any) -> int:
    """How many images to test blocks at unless asked: the fewer, the more a pass of one costs.

    Raises
    ------
    ArgumentError
        A pass costs so much that even the fewest would take minutes.
    """
    module = module_of(net)
    with evaluating(module), torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(inputs(net, images, np.arange(1)))
    operations = max(counter.get_total_flops(), 1)
    if operations > _MOST_OPERATIONS:
        raise ArgumentError(
            f"A pass of one image takes {operations:.1e} operations, so the Brenier test would "
            f"take minutes; ask for it by a number of images, such as `brenier={_FEWEST_POINTS}`."
        )
    return int(min(_MOST_POINTS, max(_FEWEST_POINTS, _OPERATIONS / operations)))


def _facts(result: BrenierResult | None, **more: Any) -> dict[str, Any]:
    if result is None:
        return {}
    return {
        "asymmetry": result.asymmetry,
        "min_eigenvalue": result.min_eigenvalue,
        "brenier": {**result.to_dict(), **more},
    }

"""What stands beside the measured figures: a reference network, and the Brenier test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from ..brenier import BrenierResult, brenier_blocks
from ..checkpoint import Network
from ..errors import ArgumentError, ProcessError, RecordError, WgeoError
from ..features import inputs
from ..geodesic import shuffled, straighter_than
from ..trajectory import Trajectory

REFERENCES = ("init", "shuffled", "none")
_STATISTIC = "line_shape_ratio"  # per sample, so that the test needs no transport


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
    points: int,
    bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """Test every block, and every segment's run of blocks, for being the gradient of a convex map.

    Returns
    -------
    dict
        ``blocks`` and ``segments``, aligned with the trajectory's: ``asymmetry``,
        ``min_eigenvalue`` and all else under ``brenier``; empty where the space changes.
    """
    module = net.module if isinstance(net, Network) else net
    names = [block.target for block in traj.blocks]
    rows = np.unique(np.linspace(0, len(traj) - 1, min(points, len(traj))).astype(int))
    x = inputs(net, images, rows)
    found = brenier_blocks(module, x, names, bootstrap=bootstrap, seed=seed)
    last = {run[-1]: result for run, result in found.segments.items()}
    return {
        "blocks": [_figures(found.blocks.get(name)) for name in names],
        "segments": [_figures(last.get(segment.names[-1])) for segment in traj.segments],
    }


def _figures(result: BrenierResult | None) -> dict[str, Any]:
    if result is None:
        return {}
    return {
        "asymmetry": result.asymmetry,
        "min_eigenvalue": result.min_eigenvalue,
        "brenier": result.to_dict(),
    }

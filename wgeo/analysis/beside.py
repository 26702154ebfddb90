"""What stands beside the measured figures: a reference network, and the Brenier test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from ..brenier import BrenierResult, brenier_blocks
from ..checkpoint import Network
from ..data import Images
from ..errors import ArgumentError, WgeoError
from ..features import inputs, normalization_for, trace
from ..geodesic import StraighterThan, shuffled, straighter_than
from ..models import untrained
from ..trajectory import Trajectory

REFERENCES = {
    "init": "this architecture with fresh weights",
    "shuffled": "its own layers in another order",
    "none": "",
}
_STATISTIC = "line_shape_ratio"  # per sample, so that the test needs no transport
_SIGNIFICANT = 0.05


def reference_test(
    traj: Trajectory,
    net: Network | nn.Module,
    images: Any,
    reference: str | Network | nn.Module,
    reading: Mapping[str, Any],
    seed: int,
) -> dict[str, Any] | None:
    """Test whether a network is straighter than a reference, segment by segment.

    Returns
    -------
    dict or None
        ``kind``; ``tests``, a row a segment of at least two blocks; ``verdict``; ``kept``, the
        parameters that have no fresh weights; ``skipped``, why there is no test.
    """
    if isinstance(reference, str) and reference not in REFERENCES:
        raise ArgumentError(
            f"Unknown reference {reference!r}; choose {', '.join(REFERENCES)}, or give a network."
        )
    if reference == "none":
        return None
    module = net.module if isinstance(net, Network) else net
    kept: tuple[str, ...] = ()
    kind = reference if isinstance(reference, str) else "network"
    words = REFERENCES.get(kind, "the network it is compared with")
    try:
        if reference == "shuffled":
            other = shuffled(traj, seed=seed)
        elif reference == "init":
            fresh, kept = untrained(module, seed)
            other = trace(fresh, _as_traced(net, images), **reading)
        else:
            other = trace(reference, images, **reading)  # type: ignore[arg-type]
        tests = straighter_than(traj, other, statistic=_STATISTIC, seed=seed)
    except WgeoError as error:  # a reference that says nothing is no reason to lose the analysis
        if kind == "network":
            raise
        return {"kind": kind, "tests": [], "skipped": str(error), "verdict": ""}
    tests = tuple(test for test in tests if len(test.layers) > 2)
    return {
        "kind": kind,
        "tests": [test.to_dict() for test in tests],
        "kept": list(kept),
        "verdict": _in_words(tests, words),
    }


def _as_traced(net: Network | nn.Module, images: Any) -> Any:
    """Images normalised for `net` whatever network they are given to."""
    if isinstance(images, Images):
        return replace(images, normalize=normalization_for(net, images))
    return images


def _in_words(tests: tuple[StraighterThan, ...], words: str) -> str:
    if not tests:
        return ""
    won = [test for test in tests if test.p_value <= _SIGNIFICANT]
    outcome = "is straighter than" if won else "is not shown to be straighter than"
    where = f" in {len(won)} of {len(tests)} segments" if len(tests) > 1 and won else ""
    shown = max(won or tests, key=lambda test: test.effect_size)
    return (
        f"Its samples' paths: it {outcome} {words}{where} (line-shape ratio {shown.value:.3g} "
        f"against {shown.reference:.3g} from {shown.layers[0]} to {shown.layers[-1]}, "
        f"d = {shown.effect_size:+.2f}, one-sided p = {shown.p_value:.2g})."
    )


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
        ``verdict``, in words.
    """
    module = net.module if isinstance(net, Network) else net
    names = [block.target for block in traj.blocks]
    rows = np.unique(np.linspace(0, len(traj) - 1, min(points, len(traj))).astype(int))
    x = inputs(net, images, rows)
    found = brenier_blocks(module, x, names, bootstrap=bootstrap, seed=seed)
    tested = [found.blocks[name] for name in names if name in found.blocks]
    last = {run[-1]: result for run, result in found.segments.items()}
    return {
        "blocks": [_figures(found.blocks.get(name)) for name in names],
        "segments": [_figures(last.get(segment.names[-1])) for segment in traj.segments],
        "verdict": _of_jacobians(tested),
    }


def _of_jacobians(tested: Sequence[BrenierResult]) -> str:
    if not tested:
        return "No block keeps its space, so none could be tested for being a gradient."
    never = sum(result.negative_share == 0 for result in tested)
    asymmetries = [result.asymmetry for result in tested if result.asymmetry is not None]
    between = f"{min(asymmetries):.2g} to {max(asymmetries):.2g}" if asymmetries else "undefined"
    return (
        f"By their Jacobians at {tested[0].points} images, {never} of {len(tested)} blocks that "
        "keep their space have no negative eigenvalue, as optimal maps must (asymmetry "
        f"{between}; 0 for a gradient)."
    )


def _figures(result: BrenierResult | None) -> dict[str, Any]:
    if result is None:
        return {}
    return {
        "asymmetry": result.asymmetry,
        "min_eigenvalue": result.min_eigenvalue,
        "brenier": result.to_dict(),
    }

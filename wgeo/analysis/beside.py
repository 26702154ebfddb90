"""What stands beside the measured figures: a reference network, and the Brenier test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from ..brenier import BrenierResult, brenier_blocks
from ..checkpoint import Network
from ..data import Images
from ..errors import ArgumentError, ProcessError, RecordError, WgeoError
from ..features import inputs, normalization_for, trace
from ..geodesic import StraighterThan, shuffled, straighter_than
from ..models import untrained
from ..trajectory import Trajectory

REFERENCES = {
    "init": "this architecture with fresh weights (one draw)",
    "shuffled": "its own layers in another order",
    "none": "",
}
_STATISTIC = "line_shape_ratio"  # per sample, so that the test needs no transport
_SIGNIFICANT = 0.05
_MOST_KEPT = 0.01  # share of the parameters without fresh weights beyond which nothing is fresh


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
    if isinstance(reference, known) or reference in tuple(REFERENCES):
        return reference
    raise ArgumentError(
        f"Unknown reference {reference!r}; choose {', '.join(REFERENCES)}, or give a network."
    )


def reference_test(
    traj: Trajectory,
    reference: str | Network | nn.Module | Trajectory,
    seed: int,
    traced: Callable[[], tuple[Trajectory, tuple[str, ...]]] | None = None,
) -> dict[str, Any] | None:
    """Test whether a network is straighter than a reference, segment by segment.

    Parameters
    ----------
    traj : Trajectory
    reference : as `checked_reference` returns it
    seed : int
    traced : callable, optional
        Traces the reference where it is a network (`traced_reference`).

    Returns
    -------
    dict or None
        ``kind``; ``tests``, a row a segment of at least two blocks; ``verdict``; ``kept``, the
        parameters that have no fresh weights; ``skipped``, why there is no test.
    """
    if reference == "none":
        return None
    kept: tuple[str, ...] = ()
    kind = reference if isinstance(reference, str) else "network"
    words = REFERENCES.get(kind, "the network it is compared with")
    try:
        if reference == "shuffled":
            other = shuffled(traj, seed=seed)
        elif isinstance(reference, Trajectory):
            other = reference
        elif traced is None:
            raise ArgumentError(
                "Features alone have no network to give fresh weights. Store those of an untrained "
                "checkpoint too, and give them as the reference."
            )
        else:
            other, kept = traced()
        tests = straighter_than(traj, other, statistic=_STATISTIC, seed=seed)
    except WgeoError as error:  # a reference that says nothing is no reason to lose the analysis
        if kind == "network" or isinstance(error, ProcessError | RecordError):
            raise
        return {"kind": kind, "tests": [], "skipped": str(error), "verdict": ""}
    tests = tuple(test for test in tests if len(test.layers) > 2)
    return {
        "kind": kind,
        "tests": [test.to_dict() for test in tests],
        "kept": list(kept),
        "verdict": _in_words(tests, words),
    }


def traced_reference(
    net: Network | nn.Module,
    images: Any,
    reference: str | Network | nn.Module,
    reading: Mapping[str, Any],
    seed: int,
) -> tuple[Trajectory, tuple[str, ...]]:
    """Trace a network, or `net` with fresh weights; return the names of those it kept, too."""
    if isinstance(reference, Network | nn.Module):
        return trace(reference, images, **reading), ()
    fresh, kept = untrained(net.module if isinstance(net, Network) else net, seed)
    _mostly_fresh(fresh, kept)
    return trace(fresh, _as_traced(net, images), **reading), kept


def _mostly_fresh(fresh: nn.Module, kept: tuple[str, ...]) -> None:
    sizes = {name: parameter.numel() for name, parameter in fresh.named_parameters()}
    share = sum(sizes[name] for name in kept) / max(sum(sizes.values()), 1)
    if share > _MOST_KEPT:
        raise ArgumentError(
            f"{share:.0%} of the parameters have no reset of their own ({', '.join(kept[:3])}, "
            "...), so there are no fresh weights to test against. Give a checkpoint of epoch 0 as "
            "the reference."
        )


def _as_traced(net: Network | nn.Module, images: Any) -> Any:
    """Images normalised for `net` whatever network they are given to."""
    if isinstance(images, Images):
        return replace(images, normalize=normalization_for(net, images))
    return images


def _in_words(tests: tuple[StraighterThan, ...], words: str) -> str:
    if not tests:
        return ""
    adjusted = _holm([test.p_value for test in tests])
    won = [k for k, p in enumerate(adjusted) if p <= _SIGNIFICANT]
    outcome = "is straighter than" if won else "is not shown to be straighter than"
    where = f" in {len(won)} of {len(tests)} segments" if len(tests) > 1 and won else ""
    k = max(won or range(len(tests)), key=lambda k: tests[k].effect_size)
    shown = tests[k]
    return (
        f"On these images the network {outcome} {words}{where}; the clearest: line-shape ratio "
        f"{shown.value:.3g} against {shown.reference:.3g} from {shown.layers[0]} to "
        f"{shown.layers[-1]}, d = {shown.effect_size:+.2f}, one-sided p = {adjusted[k]:.2g}."
    )


def _holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for as many tests (Holm 1979)."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.array(p_values)[order] * factors), 1.0)
    return [float(p) for p in adjusted]


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

"""Tests that need more than the features: against a reference, and of the blocks' Jacobians."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ..arrays.rows import spaced_rows
from ..checkpoints import Network
from ..errors import ArgumentError, ProcessError, RecordError, WgeoError
from ..features.network import inputs, module_of
from ..geodesic import alignment, straighter_than
from ..geodesic.gradient_maps import BrenierResult, brenier_blocks
from ..geodesic.significance import shuffled
from ..models.parts import evaluating
from ..runtime.memory import OUT_OF_MEMORY
from ..trajectory import Trajectory
from .plan import REFERENCES, AnalysisPlan

_STATISTIC = "line_shape_ratio"  # per sample, so the test solves no transport problem
# Range of the default number of images of the Brenier test. More than the minimum are used only as
# long as a forward pass of all of them takes at most `_TOTAL_OPERATIONS`.
_MIN_POINTS, _MAX_POINTS = 4, 8
_TOTAL_OPERATIONS = 4e8
_MAX_OPERATIONS = 3e8  # if a forward pass of one image takes more, tests run only on request
_ALIGNED_POINTS = 4  # default number of images of the alignment test
_PROBES = 4
_TOLERANCE = 1e-2  # relative error of the Brenier test; the spread over images is larger


def opened_reference(plan: AnalysisPlan, *, features: bool = False) -> Any:
    """Return the reference of a plan for a network or, if `features` is true, for features.

    A path is loaded. An ArgumentError is raised if the reference is of the other kind.
    """
    reference = plan.reference.reference
    if isinstance(reference, str | os.PathLike):
        if reference in REFERENCES:
            return reference
        return Trajectory.load(reference) if features else plan.loading.network(reference)
    if isinstance(reference, Trajectory) is not features:
        raise ArgumentError(
            "The reference of features must be features too, a Trajectory."
            if features
            else "The reference of a network must be a network too, not features."
        )
    return reference


def reference_test(
    traj: Trajectory,
    reference: str | Network | nn.Module | Trajectory,
    seed: int,
    compare: Callable[[], dict[str, Any]] | None = None,
) -> dict[str, Any] | None:
    """Test whether a network is straighter than a reference, segment by segment.

    The result is None for the reference ``none``. Otherwise it contains ``kind`` and the values of
    `fresh_networks` (for ``init``) or of `over_images`. If there is no test, these values
    are replaced by ``skipped``, the reason. `compare` runs the tests that need the network; it is
    None if there are only features. Errors of a test against a given network are raised.
    """
    if reference == "none":
        return None
    kind = reference if isinstance(reference, str) else "network"
    try:
        if compare is not None and kind != "shuffled":
            return {"kind": kind, **compare()}
        if kind == "init":
            raise ArgumentError(
                "Features alone contain no network that could be randomly initialized. Store the "
                "features of an untrained checkpoint, too, and give them as the reference."
            )
        other = reference if isinstance(reference, Trajectory) else shuffled(traj, seed=seed)
        return {"kind": kind, **over_images(traj, other, seed)}
    except WgeoError as error:  # the rest of the analysis is useful without this test
        if kind == "network" or isinstance(error, ProcessError | RecordError):
            raise
        return {"kind": kind, "skipped": str(error)}


def over_images(traj: Trajectory, other: Trajectory, seed: int) -> dict[str, Any]:
    """Test two networks over these images, in every segment of at least two blocks."""
    tests = straighter_than(traj, other, statistic=_STATISTIC, centred=True, seed=seed)
    return {"tests": [test.to_dict() for test in tests if len(test.layers) > 2]}


class BrenierTests(NamedTuple):
    """The values that the Brenier test adds to the record itself and to its blocks and segments.

    A block or segment that was not tested has an empty mapping.
    """

    test: dict[str, Any]
    blocks: list[dict[str, Any]]
    segments: list[dict[str, Any]]

    @classmethod
    def none(cls, traj: Trajectory, test: dict[str, Any]) -> BrenierTests:
        return cls(test, [{}] * len(traj.blocks), [{}] * len(traj.segments))


def brenier_test(
    traj: Trajectory,
    net: Network | nn.Module,
    images: Any,
    points: int | None,
    bootstrap: int,
    seed: int,
) -> BrenierTests:
    """Test whether each block, and each segment as a whole, is the gradient of a convex function.

    If `points` is None, the number of images follows from the cost of the test, and a test that
    fails is skipped. Otherwise its errors are raised.
    """
    names = [block.target for block in traj.blocks]
    try:
        count = points
        if count is None:
            operations = _affordable_operations(net, images, "Brenier test", "brenier")
            count = int(min(_MAX_POINTS, max(_MIN_POINTS, _TOTAL_OPERATIONS / operations)))
        rows = spaced_rows(len(traj), count)
        options = {"probes": _PROBES, "tolerance": _TOLERANCE, "bootstrap": bootstrap, "seed": seed}
        tests = brenier_blocks(module_of(net), inputs(net, images, rows), names, **options)
    except (WgeoError, OUT_OF_MEMORY) as reason:
        if points:
            raise
        return BrenierTests.none(traj, {"points": 0, "skipped": str(reason)})
    last = {run[-1]: (run, result) for run, result in tests.segments.items()}
    runs = [last.get(segment.names[-1], ((), None)) for segment in traj.segments]
    return BrenierTests(
        {"points": len(rows)},
        [_row(tests.blocks.get(name)) for name in names],
        [_row(result, blocks=list(run)) for run, result in runs],
    )


def alignment_test(
    traj: Trajectory, net: Network | nn.Module, images: Any, points: int | None, seed: int
) -> dict[str, Any]:
    """Return the values of `wgeo.alignment`; errors as for `brenier_test`."""
    try:
        if points is None:
            _affordable_operations(net, images, "comparison of Jacobians", "alignment")
        result = alignment(
            net,
            images,
            layers=[layer.name for layer in traj.staged][1:],  # all but the stem
            points=_ALIGNED_POINTS if points is None else points,
            probes=_PROBES,
            seed=seed,
        )
    except (WgeoError, OUT_OF_MEMORY) as reason:
        if points:
            raise
        return {"points": 0, "skipped": str(reason)}
    return result.to_dict()


def _affordable_operations(net: Network | nn.Module, images: Any, test: str, option: str) -> int:
    """Return the number of operations of a forward pass of one image.

    If it is so large that the test would take minutes, raise an ArgumentError.
    """
    from torch.utils.flop_counter import FlopCounterMode  # loads Triton, which takes a while

    module = module_of(net)
    with evaluating(module), torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(inputs(net, images, np.arange(1)))
    operations = max(counter.get_total_flops(), 1)
    if operations > _MAX_OPERATIONS:
        raise ArgumentError(
            f"A pass of one image takes {operations:.1e} operations, so the {test} would "
            f"take minutes; request it with a number of images, such as `{option}={_MIN_POINTS}`."
        )
    return operations


def _row(result: BrenierResult | None, **extra: Any) -> dict[str, Any]:
    if result is None:
        return {}
    return {
        "asymmetry": result.asymmetry,
        "min_eigenvalue": result.min_eigenvalue,
        "brenier": {**result.to_dict(), **extra},
    }

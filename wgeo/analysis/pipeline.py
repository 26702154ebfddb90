"""All steps of an analysis, from a network and images to the record."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from ..arrays.checks import pick_device
from ..checkpoints import Network
from ..comparison import Comparison
from ..comparison.entry import model_predictions
from ..data.loaders import as_images
from ..errors import FeatureError, RecordError
from ..features import trace
from ..geodesic import BiasCurve, Straightness, bias_curve, straightness
from ..neural_collapse import Collapse, collapse
from ..runtime import processes
from ..storage.record import Record
from ..storage.records import SCHEMA
from ..storage.schema import as_json
from ..trajectory import Trajectory, as_trajectory
from ..trajectory.views import class_view
from ..transport import Solver, chain
from .controls import (
    BrenierTests,
    alignment_test,
    brenier_test,
    opened_reference,
    over_images,
    reference_test,
)
from .fresh import fresh_networks
from .plan import AnalysisPlan, solver_of
from .result import Analysis, versions
from .trust import copies_in, trust_of
from .verdict import NO_COMMON_SPACE, THRESHOLDS, headline, sentences

_MAX_WORK = 1e10  # multiplications for intervals of the collapse metrics; about 20 s on one core


def analyze(
    net: Network | nn.Module,
    images: Any,
    *,
    pool: str = "gap",
    tap: str = "post",
    layers: Sequence[str] | None = None,
    embed: str | None = None,
    solver: str | Solver | None = None,
    batch_size: int = 256,
    store: str | os.PathLike[str] | None = None,
    bootstrap: int = 200,
    reference: str | os.PathLike[str] | Network | nn.Module | None = "init",
    reference_networks: int = 20,
    brenier: int | None = None,
    alignment: int | None = None,
    mufm: bool | None = None,
    seed: int = 0,
    device: str = "auto",
    command: str | None = None,
) -> Analysis:
    """Analyze a network on labeled images: transport, straightness, collapse and models.

    Parameters
    ----------
    net : Network or nn.Module
    images : Images, (x, labels), Dataset or DataLoader
    pool, tap, layers, batch_size, device
        Options for reading features; see `trace`.
    store : path, optional
        Store the features in this folder instead of keeping them in memory; see `trace`. The
        features of a network given as `reference` are stored in ``STORE-reference-SEED``.
    embed : str, optional
        Also measure the whole network in one space: ``pad`` or ``pca:D``; see
        `Trajectory.embedded`.
    solver : Exact, Sinkhorn, Sliced or Gaussian, or str
        The solver for W2, or its text on the command line; by default ``Exact()``.
    bootstrap : int
        Number of resamples for the 95 % intervals; 0 for no intervals. The intervals of the
        collapse metrics are left out if they would take more than about 20 s, for example for
        unpooled features; `wgeo.collapse` computes them.
    reference : {"init", "shuffled", "none"}, Network, nn.Module or path
        The reference for straightness. ``init``: the rank of the network among
        `reference_networks` randomly initialized networks of this architecture. ``shuffled`` (the
        network's own layers in another order), another network, or the path of its checkpoint: a
        test of these two networks over images (`straighter_than`). ``none`` or None: no test.
    reference_networks : int
        Number R >= 1 of randomly initialized networks. P-values are at least 1 / (R + 1), so with
        fewer than 19 no difference is significant. Each costs two passes of at most 200 images.
    brenier : int or None
        Number of images at which to test whether every block is the gradient of a convex function
        (`wgeo.brenier`); 0 for no test. Each image costs about 100 passes of each block. By default
        4 to 8 images if a forward pass of one image takes at most 3e8 operations, as in CIFAR's
        ResNets of up to 56 layers; otherwise there is no test, and the record states why.
    alignment : int or None
        Number of images at which the residual Jacobians of the blocks are compared
        (`wgeo.alignment`); 0 for no comparison. Each image costs about 150 passes of each block. By
        default 4 images under the same condition as for `brenier`.
    mufm : bool or None
        Whether to compare the network also with the multilayer unconstrained feature model, fitted
        to its last segment. By default only if the network has a classifier and the fit is expected
        to take at most a minute on one core. If there is no fit, the record states why.
    seed : int
        Random seed, >= 0.
    command : str, optional
        The command to store in the record.

    Raises
    ------
    FeatureError
        There are fewer than two classes, a layer contains NaN, or there are no blocks.
    ArgumentError
        A setting is invalid.
    CheckpointError
        The checkpoint given as `reference` cannot be read.

    Examples
    --------
    >>> import torch
    >>> import wgeo
    >>> net = wgeo.models.build("mlp", num_classes=2, in_channels=1, image_size=2, width=4, depth=2)
    >>> images = torch.randn(20, 1, 2, 2), torch.arange(20) % 2
    >>> fast = {"bootstrap": 0, "reference": "none", "brenier": 0, "alignment": 0, "mufm": False}
    >>> result = wgeo.analyze(net, images, **fast)
    >>> [segment["layers"] for segment in result.segments]
    [['stem', 'blocks.0', 'blocks.1']]
    """
    plan = AnalysisPlan.of(
        pool=pool,
        tap=tap,
        layers=layers,
        batch_size=batch_size,
        device=device,
        embed=embed,
        solver="exact" if solver is None else solver,
        bootstrap=bootstrap,
        reference="none" if reference is None else reference,
        reference_networks=reference_networks,
        brenier=brenier,
        alignment=alignment,
        mufm=mufm,
        seed=seed,
    )
    return analyze_network(plan, net, images, store=store, command=command)


def analyze_network(
    plan: AnalysisPlan,
    net: Network | nn.Module,
    images: Any,
    *,
    store: str | os.PathLike[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    command: str | None = None,
) -> Analysis:
    """Analyze a network on labeled images with the settings of a plan; see `analyze`."""
    reference, reading, seed = opened_reference(plan), plan.reading.parameters(), plan.seed
    images = as_images(images)
    traj = trace(net, images, store=store, **reading)

    def compare() -> dict[str, Any]:
        if isinstance(reference, str):
            networks = plan.reference.reference_networks
            return fresh_networks(traj, net, images, networks, reading, seed)
        folder = None if store is None else f"{os.fspath(store)}-reference-{seed}"
        return over_images(traj, trace(reference, images, store=folder, **reading), seed)

    measured = _measured(plan, traj)
    tests: dict[str, Any] = {"reference": reference_test(traj, reference, seed, compare)}
    if (points := plan.tests.brenier) != 0:
        test = partial(brenier_test, traj, net, images, points, plan.measuring.bootstrap, seed)
        tests["brenier"] = processes.on_rank_zero(test)
    if (points := plan.tests.alignment) != 0:
        aligned = partial(alignment_test, traj, net, images, points, seed)
        tests["alignment"] = processes.on_rank_zero(aligned)
    record = _record(
        plan,
        traj,
        measured,
        trust=trust_of(traj, measured.copies, net, images, reading),
        provenance=provenance,
        device=str(pick_device(plan.reading.device)),
        command=command,
        **tests,
    )
    return Analysis(record, traj)


def analyze_trajectory(
    traj: Trajectory,
    *,
    embed: str | None = None,
    solver: str | Solver | None = None,
    bootstrap: int = 200,
    mufm: bool | None = None,
    reference: str | os.PathLike[str] | Trajectory | None = None,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
    device: str = "cpu",
    command: str | None = None,
) -> Analysis:
    """Analyze existing features, such as stored ones; see `analyze`.

    `reference` is ``shuffled``, ``none``, another trajectory of the same samples (for example of an
    untrained checkpoint), or its path. For ``init``, which needs a network, the record states that
    there was no test. `provenance`, `device` and `command` are stored in the record.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(8, 3))
    >>> traj = wgeo.Trajectory.from_arrays([x, 2 * x, 3 * x], np.arange(8) % 2)
    >>> result = wgeo.analysis.analyze_trajectory(traj, bootstrap=0, mufm=False)
    >>> round(result.segments[0]["length_ratio"], 6)
    1.0
    """
    plan = AnalysisPlan.of(
        embed=embed,
        solver="exact" if solver is None else solver,
        bootstrap=bootstrap,
        mufm=mufm,
        reference="none" if reference is None else reference,
        seed=seed,
    )
    return analyze_features(plan, traj, provenance=provenance, device=device, command=command)


def analyze_features(
    plan: AnalysisPlan,
    traj: Trajectory,
    *,
    provenance: Mapping[str, Any] | None = None,
    device: str = "cpu",
    command: str | None = None,
) -> Analysis:
    """Analyze existing features with the settings of a plan; see `analyze_trajectory`."""
    reference = opened_reference(plan, features=True)
    measured = _measured(plan, traj)
    record = _record(
        plan,
        traj,
        measured,
        reference=reference_test(traj, reference, plan.seed),
        trust=trust_of(traj, measured.copies),
        provenance=provenance,
        device=device,
        command=command,
    )
    return Analysis(record, traj)


class _Measured(NamedTuple):
    """The measurements that need only features."""

    copies: np.ndarray
    straight: Straightness
    embedded: Straightness | None
    depth: Collapse
    sizes: Sequence[BiasCurve]
    models: Comparison


def _measured(plan: AnalysisPlan, traj: Trajectory) -> _Measured:
    classes = np.unique(as_trajectory(traj).labels)
    if len(classes) < 2:
        raise FeatureError(
            f"All {len(traj)} samples are of one class ({classes[0]}); collapse compares classes. "
            "Give samples of at least two classes."
        )
    embed, bootstrap, seed = plan.measuring.embed, plan.measuring.bootstrap, plan.seed
    solver = solver_of(plan.measuring.solver)
    copies = copies_in(traj)
    options: dict[str, Any] = {
        "solver": solver,
        "bootstrap": bootstrap,
        "seed": seed,
        "groups": copies if len(np.unique(copies)) < len(traj) else None,
    }
    whole = None if embed is None else straightness(traj.embedded(embed), **options)
    distances = chain(traj, solver)
    straight = (
        straightness(traj, chain=distances, **options) if traj.blocks else Straightness((), ())
    )
    depth = collapse(traj, bootstrap=_affordable(traj, bootstrap), seed=seed)
    curves = [
        partial(bias_curve, s.arrays[0], s.arrays[-1], solver=solver, seed=seed, whole=end)
        for s, end in zip(traj.segments, distances.ends, strict=True)
    ]
    sizes = processes.map_over_ranks(curves, "sample sizes")
    try:
        models = model_predictions(traj, mufm=plan.measuring.mufm, seed=seed)
    except RecordError as error:  # the disk is full; earlier measurements are kept
        models = Comparison(skipped=str(error))
    return _Measured(copies, straight, whole, depth, sizes, models)


def _record(
    plan: AnalysisPlan,
    traj: Trajectory,
    measured: _Measured,
    *,
    reference: Mapping[str, Any] | None = None,
    brenier: BrenierTests | None = None,
    alignment: Mapping[str, Any] | None = None,
    trust: Mapping[str, Any],
    provenance: Mapping[str, Any] | None,
    device: str,
    command: str | None,
) -> dict[str, Any]:
    straight, depth = measured.straight.to_dict(), measured.depth.to_dict()
    tested = brenier or BrenierTests.none(traj, {})
    whole = measured.embedded
    parts = {
        "transport_skipped": None if traj.blocks else NO_COMMON_SPACE,
        "embedded": None
        if whole is None
        else {"space": plan.measuring.embed, **whole.to_dict(), "verdict": _verdict(whole)},
        "reference": reference,
        "brenier": tested.test or None,
        "alignment": alignment,
    }
    values = {
        "schema": SCHEMA,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command or "wgeo.analyze(...)",
        "versions": versions(),
        "seed": plan.seed,
        "device": device,
        "provenance": {
            "checkpoint": None,
            "sha256": None,
            "arch": None,
            "num_classes": traj.num_classes,
            "data": None,
            "split": None,
            "samples": len(traj),
            "pool": None,
            "class_names": list(traj.class_names),
            **traj.settings,
            **(provenance or {}),
        },
        "accuracy": traj.accuracy,
        "layers": depth["layers"],
        "blocks": [
            {**row, **test} for row, test in zip(straight["blocks"], tested.blocks, strict=True)
        ],
        "segments": [
            {
                **row,
                "sample_sizes": curve.to_dict(),
                "view": class_view(segment, traj.labels),
                **test,
            }
            for row, curve, segment, test in zip(
                straight["segments"], measured.sizes, traj.segments, tested.segments, strict=True
            )
        ],
        "progress": depth["progress"],
        "separation": depth["separation"],
        "separation_law": depth["separation_law"],
        "learned_at": depth["learned_at"],
        **measured.models.to_dict(),
        "trust": trust,
        "thresholds": THRESHOLDS,
        **{key: part for key, part in parts.items() if part is not None},
    }
    record = Record.of(values)
    verdict = {"headline": headline(record).to_dict(), "verdict": _verdict(record)}
    return {**record.json, **as_json(verdict)}


def _verdict(measured: Record | Straightness) -> list[dict[str, Any]]:
    return [sentence.to_dict() for sentence in sentences(measured)]


def _affordable(traj: Trajectory, draws: int) -> int:
    """Return the number of resamples for the collapse metrics; 0 if they would take too long."""
    entries = sum(layer.features.size for layer in traj.staged)
    return draws if draws * entries * traj.num_classes <= _MAX_WORK else 0

"""From network and images to the record, step by step."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from .. import distributed
from ..arrays import pick_device
from ..checkpoint import Network
from ..collapse import Collapse, collapse
from ..compare import Comparison, predicted
from ..data import Images
from ..errors import ArgumentError, FeatureError, RecordError
from ..features import trace
from ..geodesic import bias_curve, straightness, verdict
from ..records import SCHEMA, as_json
from ..trajectory import Trajectory, as_trajectory
from ..transport import Exact, chain
from .beside import brenier_test, checked_reference, reference_test, traced_reference
from .result import Analysis, versions
from .views import class_view

_MOST_WORK = 1e10  # multiplications behind the intervals of collapse: about 20 s on one core


def analyze(
    net: Network | nn.Module,
    images: Images | tuple[Any, Any],
    *,
    pool: str = "gap",
    tap: str = "post",
    layers: Sequence[str] | None = None,
    embed: str | None = None,
    solver: Any = None,
    batch_size: int = 256,
    store: str | os.PathLike[str] | None = None,
    bootstrap: int = 200,
    reference: str | Network | nn.Module | None = "init",
    brenier: int = 0,
    mufm: bool | None = None,
    seed: int = 0,
    device: str = "auto",
    command: str | None = None,
) -> Analysis:
    """Analyse a network on labelled images: transport, straightness, collapse and models.

    Parameters
    ----------
    net : Network or nn.Module
    images : Images, or (x, labels)
    pool, tap, layers, batch_size, device
        How features are read; see `trace`.
    store : path, optional
        Keep the features in this folder, and those of a reference network in a folder beside it
        (``-reference-SEED``), rather than in memory; see `trace`.
    embed : str, optional
        Measure the whole network in one space too: ``pad`` or ``pca:D``; see
        `Trajectory.embedded`.
    solver : Exact, Sinkhorn, Sliced or Gaussian
        How W2 is measured; default ``Exact()``.
    bootstrap : int
        Resamples behind the 95 % intervals; 0 for none. Very wide layers (flat features) have
        none for collapse, which `wgeo.collapse` computes where asked.
    reference : {"init", "shuffled", "none"}, Network or nn.Module
        What straightness is tested against (`straighter_than`): this architecture with fresh
        weights, its own layers in another order, nothing, or a network of your choice. The test
        is over images: fresh weights are one draw.
    brenier : int
        At how many of the images to test every block for being the gradient of a convex function
        (`wgeo.brenier`); 0 for none. Costs about 200 passes of each block at each.
    mufm : bool or None
        Whether to set the network beside the multilayer unconstrained-feature model too, fitted to
        its last segment. None: where it has a classifier and the fit takes about a minute at most
        on one core, as it does unless features are thousands wide, samples tens of thousands or
        classes hundreds; the record says why not.
    seed : int
        Of everything random.
    command : str, optional
        What made this analysis, for the record.

    Raises
    ------
    FeatureError
        Fewer than two classes, NaN in a layer, no blocks.
    ArgumentError
        A setting that makes no sense.
    """
    reference = checked_reference(reference)
    if not isinstance(brenier, int) or brenier < 0:
        raise ArgumentError(f"brenier is a number of images, at least 0; not {brenier!r}.")
    reading: dict[str, Any] = {
        "pool": pool,
        "tap": tap,
        "layers": layers,
        "batch_size": batch_size,
        "device": device,
    }
    traj = trace(net, images, store=store, **reading)
    done = analyze_trajectory(
        traj,
        embed=embed,
        solver=solver,
        bootstrap=bootstrap,
        mufm=mufm,
        seed=seed,
        device=str(pick_device(device)),
        command=command,
    )
    beside = None if store is None else f"{os.fspath(store)}-reference-{seed}"
    reading["store"] = beside
    other = partial(traced_reference, net, images, reference, reading, seed)
    record = _beside(done.record, reference_test(traj, reference, seed, other))
    if brenier:
        testing = partial(brenier_test, traj, net, images, brenier, bootstrap, seed)
        found = distributed.first(testing)
        for row, figures in zip(record["blocks"], found["blocks"], strict=True):
            row.update(as_json(figures))
        for row, figures in zip(record["segments"], found["segments"], strict=True):
            row.update(as_json(figures))
        record["verdict"] += f" {found['verdict']}"
    return replace(done, record=record)


def analyze_trajectory(
    traj: Trajectory,
    *,
    embed: str | None = None,
    solver: Any = None,
    bootstrap: int = 200,
    mufm: bool | None = None,
    reference: str | Trajectory | None = None,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
    device: str = "cpu",
    command: str | None = None,
) -> Analysis:
    """Analyse features that are already there, such as stored ones; see `analyze`.

    `reference` is ``shuffled``, ``none``, or another trajectory of the same samples, such as that
    of an untrained checkpoint; there is no network here to give fresh weights.
    """
    reference = checked_reference(reference)
    present = np.unique(as_trajectory(traj).labels)
    if len(present) < 2:
        raise FeatureError(
            f"All {len(traj)} samples are of one class ({present[0]}); collapse compares classes. "
            "Give images of at least two."
        )
    solver = Exact() if solver is None else solver
    measuring: dict[str, Any] = {"solver": solver, "bootstrap": bootstrap, "seed": seed}
    whole = None if embed is None else straightness(traj.embedded(embed), **measuring)
    straight = straightness(traj, chain=chain(traj, solver), **measuring)
    collapsed = collapse(traj, bootstrap=_affordable(traj, bootstrap), seed=seed)
    found, depth = straight.to_dict(), collapsed.to_dict()
    curves = [
        partial(bias_curve, s.arrays[0], s.arrays[-1], solver=solver, seed=seed)
        for s in traj.segments
    ]
    sizes = distributed.dealt(curves, "sample sizes")
    try:
        models = predicted(traj, mufm=mufm, seed=seed)
    except RecordError as error:  # a full disk; what was measured before is kept
        models = Comparison(skipped=str(error))
    segments = [
        {**figures, "sample_sizes": curve.to_dict(), "view": class_view(segment, traj.labels)}
        for figures, curve, segment in zip(found["segments"], sizes, traj.segments, strict=True)
    ]
    record = {
        "schema": SCHEMA,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command or "wgeo.analyze(...)",
        "versions": versions(),
        "seed": seed,
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
        "blocks": found["blocks"],
        "segments": segments,
        "progress": depth["progress"],
        "separation": depth["separation"],
        "learned_at": depth["learned_at"],
        **models.to_dict(),
        "verdict": f"{verdict(straight)} {_progress_in_words(collapsed)}",
    }
    if whole is not None:
        record["embedded"] = {"space": embed, **whole.to_dict(), "verdict": verdict(whole)}
    tested = reference_test(traj, reference, seed)
    return Analysis(_beside(as_json(record), tested), traj)


def _beside(record: dict[str, Any], tested: dict[str, Any] | None) -> dict[str, Any]:
    """Put the test against a reference into a record."""
    if tested is None:
        return record
    words = f"{record['verdict']} {tested['verdict']}".rstrip()
    return {**record, "reference": as_json(tested), "verdict": words}


def _affordable(traj: Trajectory, draws: int) -> int:
    """Resamples of the collapse metrics: as many as asked, or none where they take minutes."""
    entries = sum(layer.features.size for layer in traj.staged)
    return draws if draws * entries * traj.num_classes <= _MOST_WORK else 0


def _progress_in_words(collapsed: Collapse) -> str:
    nc1 = collapsed.progress.get("nc1")
    if nc1 is None or nc1.kendall_tau is None:
        return "Whether the classes collapse with depth cannot be said: NC1 is undefined."
    last = next(layer for layer in reversed(collapsed.layers) if layer.stage is not None)
    trend = (
        "falls at every layer"
        if nc1.violations == 0
        else f"falls with depth but for {nc1.violations} layer{'s' * (nc1.violations != 1)}"
        if nc1.kendall_tau < 0
        else "does not fall with depth"
    )
    return (
        f"Within-class variability (NC1) {trend} (Kendall's tau {nc1.kendall_tau:+.2f}), "
        f"to {last.nc1:.3g} at the last layer."
    )

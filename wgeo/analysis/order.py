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

from ..arrays.checks import pick_device
from ..checkpoints import Network
from ..comparison import Comparison
from ..comparison.entry import model_predictions
from ..data.loaders import as_images
from ..errors import ArgumentError, FeatureError, RecordError
from ..features import trace
from ..geodesic import Straightness, bias_curve, straightness
from ..neural_collapse import collapse
from ..runtime import processes
from ..storage.records import SCHEMA, as_json
from ..trajectory import Trajectory, as_trajectory
from ..transport import Exact, chain
from .beside import brenier_test, checked_reference, over_images, reference_test
from .fresh import fresh_networks
from .result import Analysis, versions
from .trust import copies_in, trust_of
from .verdict import THRESHOLDS, sentences
from .views import class_view

_NO_COMMON_SPACE = (
    "No two consecutive layers share a feature space (their widths differ and no shortcut leads "
    "from one to the next), so transport and straightness are left out; collapse is measured "
    "layer by layer. Name layers of one width, or put them into one space with `embed='pad'` or "
    "`embed='pca:D'`."
)
_MOST_WORK = 1e10  # multiplications behind the intervals of collapse: about 20 s on one core


def analyze(
    net: Network | nn.Module,
    images: Any,
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
    reference_networks: int = 20,
    brenier: int | None = None,
    mufm: bool | None = None,
    seed: int = 0,
    device: str = "auto",
    command: str | None = None,
) -> Analysis:
    """Analyse a network on labelled images: transport, straightness, collapse and models.

    Parameters
    ----------
    net : Network or nn.Module
    images : Images, (x, labels), Dataset or DataLoader
    pool, tap, layers, batch_size, device
        How features are read; see `trace`.
    store : path, optional
        Keep the features in this folder, and those of a network given as `reference` beside it
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
        What straightness is tested against: this architecture with fresh weights, by the
        network's rank among `reference_networks` of them; its own layers in another order, or a
        network of your choice, by a test over images, of these two networks (`straighter_than`);
        nothing.
    reference_networks : int
        Number of networks R with fresh weights; p-values are at least 1 / (R + 1), so fewer than
        19 cannot tell anything apart. Each costs two passes of up to 200 of the images.
    brenier : int or None
        At how many of the images to test every block for being the gradient of a convex function
        (`wgeo.brenier`); 0 for none. None: at 4 to 8, if a pass of one image takes at most 3e8
        operations, as in CIFAR's ResNets of up to 56 layers, else at none; the record says which
        and why. Costs about 100 passes of each block at each.
    mufm : bool or None
        Whether to set the network beside the multilayer unconstrained-feature model too, fitted to
        its last segment. None: where it has a classifier and the fit takes about a minute at most
        on one core, as it does unless features are thousands wide, samples tens of thousands or
        classes hundreds; the record says why not.
    seed : int
        Random seed.
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
    if brenier is not None and (not isinstance(brenier, int) or brenier < 0):
        raise ArgumentError(f"brenier is a number of images, at least 0; not {brenier!r}.")
    if not isinstance(reference_networks, int) or reference_networks < 1:
        raise ArgumentError(
            f"reference_networks must be a whole number, at least 1, not {reference_networks!r}."
        )
    reading: dict[str, Any] = {
        "pool": pool,
        "tap": tap,
        "layers": layers,
        "batch_size": batch_size,
        "device": device,
    }
    images = as_images(images)
    traj = trace(net, images, store=store, **reading)

    def compared() -> dict[str, Any]:
        if isinstance(reference, str):
            return fresh_networks(traj, net, images, reference_networks, reading, seed)
        beside = None if store is None else f"{os.fspath(store)}-reference-{seed}"
        return over_images(traj, trace(reference, images, store=beside, **reading), seed)

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
    record = _beside(done.record, reference_test(traj, reference, seed, compared))
    if brenier != 0:
        testing = partial(brenier_test, traj, net, images, brenier, bootstrap, seed)
        found = processes.on_rank_zero(testing)
        record["brenier"] = {key: found[key] for key in ("points", "skipped") if key in found}
        for row, figures in zip(record["blocks"], found["blocks"], strict=True):
            row.update(as_json(figures))
        for row, figures in zip(record["segments"], found["segments"], strict=True):
            row.update(as_json(figures))
    record["trust"] = as_json(trust_of(traj, net, images))
    return replace(done, record=judged(record))


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
    copies = copies_in(traj)
    measuring: dict[str, Any] = {
        "solver": solver,
        "bootstrap": bootstrap,
        "seed": seed,
        "groups": copies if len(np.unique(copies)) < len(traj) else None,
    }
    whole = None if embed is None else straightness(traj.embedded(embed), **measuring)
    straight = _straightness(traj, measuring)
    collapsed = collapse(traj, bootstrap=_affordable(traj, bootstrap), seed=seed)
    found, depth = straight.to_dict(), collapsed.to_dict()
    curves = [
        partial(bias_curve, s.arrays[0], s.arrays[-1], solver=solver, seed=seed)
        for s in traj.segments
    ]
    sizes = processes.map_over_ranks(curves, "sample sizes")
    try:
        models = model_predictions(traj, mufm=mufm, seed=seed)
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
        "trust": trust_of(traj),
        "thresholds": THRESHOLDS,
    }
    if not traj.blocks:
        record["transport_skipped"] = _NO_COMMON_SPACE
    if whole is not None:
        record["embedded"] = {"space": embed, **whole.to_dict()}
    tested = reference_test(traj, reference, seed)
    return Analysis(judged(_beside(as_json(record), tested)), traj)


def judged(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with its verdict: what its numbers support saying."""
    whole = record.get("embedded")
    if whole is not None:
        record = {**record, "embedded": {**whole, "verdict": _said(whole)}}
    return {**record, "verdict": _said(record)}


def _said(record: dict[str, Any]) -> list[dict[str, Any]]:
    return as_json([sentence.to_dict() for sentence in sentences(record)])


def _straightness(traj: Trajectory, measuring: Mapping[str, Any]) -> Straightness:
    """Straightness, of nothing if no two layers share a space; collapse needs none."""
    if not traj.blocks:
        return Straightness((), ())
    return straightness(traj, chain=chain(traj, measuring["solver"]), **measuring)


def _beside(record: dict[str, Any], tested: dict[str, Any] | None) -> dict[str, Any]:
    """Put the test against a reference into a record."""
    return record if tested is None else {**record, "reference": as_json(tested)}


def _affordable(traj: Trajectory, draws: int) -> int:
    """Resamples of the collapse metrics: as many as asked, or none where they take minutes."""
    entries = sum(layer.features.size for layer in traj.staged)
    return draws if draws * entries * traj.num_classes <= _MOST_WORK else 0

"""What speaks for and against trusting an analysis: accuracy, normalization, classes, samples."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int
from scipy.stats import binom, binomtest
from torch import nn

from ..arrays.rows import row_chunks
from ..checkpoints import Network
from ..data import Images
from ..data.images import PRESETS, Normalization
from ..errors import WgeoError
from ..features import trace
from ..features.network import normalization_for
from ..trajectory import Trajectory
from .verdict import THRESHOLDS

_TRIED = 200  # images on which other normalizations are tried
_GOOD = 0.99  # accuracy from which none is
_KNOWN = ("asked", "file")  # sources of a normalization that are no assumption


def trust_of(
    traj: Trajectory, net: Network | nn.Module | None = None, images: Any = None
) -> dict[str, Any]:
    """Return the facts by which a reader judges whether to trust an analysis.

    Parameters
    ----------
    traj : Trajectory
    net : Network or nn.Module, optional
    images : Images, optional
        What the features were traced from; without them nothing is known of normalization.

    Returns
    -------
    dict
        ``samples``; ``samples_per_class``, of the smallest class that occurs; ``duplicates``, the
        number of samples that repeat another; ``classes``: how many are ``present`` and how many
        the ``head`` tells apart; ``accuracy``, ``chance`` (that of always answering the most
        frequent class), ``chance_p`` (one-sided binomial) and ``at_chance``; ``claimed_accuracy``,
        what the file says of itself; ``normalization``: ``name``, ``mean``, ``std``, ``source``
        and, if it may be wrong, ``tried`` and the ``better`` one.
    """
    _, counts = np.unique(traj.labels, return_counts=True)
    head = None if traj.classifier is None else len(traj.classifier.weight)
    if head is None and isinstance(net, Network):
        head = net.num_classes
    facts: dict[str, Any] = {
        "samples": len(traj),
        "samples_per_class": int(counts.min()),
        "duplicates": int(len(traj) - len(np.unique(copies_of(traj)))),
        "classes": {"present": len(counts), "head": head},
        **_accuracy(traj, float(counts.max() / counts.sum())),
    }
    if isinstance(net, Network) and net.provenance.claimed_accuracy:
        facts["claimed_accuracy"] = dict(net.provenance.claimed_accuracy)
    if net is not None and isinstance(images, Images):
        facts["normalization"] = _normalization(net, images, facts["accuracy"])
    return facts


def _accuracy(traj: Trajectory, chance: float) -> dict[str, Any]:
    accuracy = traj.accuracy
    if accuracy is None:
        return {"accuracy": None, "chance": chance, "chance_p": None, "at_chance": False}
    right = round(accuracy * len(traj))
    p = float(binom.sf(right - 1, len(traj), chance))
    return {
        "accuracy": accuracy,
        "chance": chance,
        "chance_p": p,
        "at_chance": p > THRESHOLDS["chance_level"],
    }


def copies_of(traj: Trajectory) -> Int[np.ndarray, " n"]:
    """Return for every sample the first sample that is equal to it, its own number if none is.

    Samples are compared as images if the trajectory begins with the images, else by the features
    of its first and last layer: a later layer can make different samples equal, and rounding can
    make equal samples differ.
    """
    first_layer = traj.layers[0]
    compared = [first_layer.features]
    if first_layer.stage is not None:
        compared.append(traj.layers[-1].features)
    first: dict[bytes, int] = {}
    copies = np.empty(len(traj), dtype=np.int64)
    for rows, parts in row_chunks(*compared):
        for i, sample in enumerate(zip(*parts, strict=True), rows.start):
            digest = hashlib.blake2b(b"".join(row.tobytes() for row in sample)).digest()
            copies[i] = first.setdefault(digest, i)
    return copies


def _normalization(
    net: Network | nn.Module, images: Images, accuracy: float | None
) -> dict[str, Any]:
    used = normalization_for(net, images)
    source = _source(net, images)
    facts: dict[str, Any] = {
        "name": used.name,
        "mean": list(used.mean),
        "std": list(used.std),
        "source": source,
    }
    if accuracy is None or accuracy >= _GOOD or source == "file":
        return facts
    return {**facts, **_tried(net, images, used)}


def _source(net: Network | nn.Module, images: Images) -> str:
    """Who says how pixels are normalized: asked, file, architecture, data, or none."""
    if images.normalize is not None:
        return "asked"
    if isinstance(net, Network) and net.normalize is not None:
        return net.provenance.normalize_source or "asked"
    return "none" if images.preset is None else "data"


def _tried(net: Network | nn.Module, images: Images, used: Normalization) -> dict[str, Any]:
    """Accuracies of a few images under every preset, and the one that is clearly better."""
    rows = np.unique(np.linspace(0, len(images) - 1, min(_TRIED, len(images))).astype(int))
    few = replace(images, x=images.x[rows], y=images.y[rows])
    right: dict[str, np.ndarray] = {}
    candidates = {used.name: used, **PRESETS}
    for name, preset in candidates.items():
        if len(preset.mean) not in (1, images.shape[0]):
            continue
        try:
            traced = trace(net, replace(few, normalize=preset))
        except WgeoError:  # features that overflow under a wrong scale are no candidate
            continue
        if traced.predictions is not None:
            right[name] = traced.predictions == few.y
    if used.name not in right:
        return {}
    tried = [{"name": name, "accuracy": float(hits.mean())} for name, hits in right.items()]
    best = max(right, key=lambda name: right[name].sum())
    better = best if _clearly_better(right[best], right[used.name]) else None
    return {"tried": tried, "images": len(rows), "better": better}


def _clearly_better(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether more images are right in `a` alone than in `b` alone (exact McNemar test)."""
    gained, lost = int((a & ~b).sum()), int((b & ~a).sum())
    if gained <= lost:
        return False
    return bool(binomtest(gained, gained + lost).pvalue <= THRESHOLDS["chance_level"])


def normalization_words(facts: Mapping[str, Any] | None) -> str:
    """``imagenet (architecture)``: how pixels were normalized, for a header; empty if unknown."""
    return f"{facts['name']} ({facts['source']})" if facts else ""

"""Facts that decide whether an analysis can be trusted: accuracy, normalization, samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import scipy
from jaxtyping import Bool, Int
from torch import nn

from ..arrays.rows import copies_of, spaced_rows
from ..checkpoints import Network
from ..data import Images
from ..data.images import PRESETS, Normalization
from ..errors import WgeoError
from ..features import trace
from ..features.network import declared_normalization, normalization_for
from ..trajectory import Trajectory
from .verdict import THRESHOLDS

_MAX_TRIAL_IMAGES = 200  # images on which other normalizations are tried


def trust_of(
    traj: Trajectory,
    copies: Int[np.ndarray, " n"],
    net: Network | nn.Module | None = None,
    images: Any = None,
    reading: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the facts that decide whether an analysis can be trusted.

    `copies` is the result of `copies_in`, and `images` and `reading` are the arguments of `trace`
    for `traj`. If `net` or `images` is None, the result contains no ``normalization``.

    Returns
    -------
    dict
        ``samples``; ``samples_per_class``, the size of the smallest class that occurs;
        ``duplicates``, the number of samples that are copies of an earlier one, and ``relabelled``,
        the number of copies with another label than the original; ``classes``, the numbers of
        classes that are ``present`` in the images and that the network's ``head`` distinguishes;
        ``accuracy``; ``chance``, the accuracy of always predicting the most frequent class;
        ``chance_p``, the p-value of a one-sided binomial test of "better than chance", and
        ``at_chance``, whether it is not significant; ``claimed_accuracy``, the accuracy stated in
        the file; ``normalization``, with ``name``, ``mean``, ``std`` and ``source``. If the
        normalization may be wrong, this also contains ``tried``, the accuracy with each preset on
        some images, ``images``, their number, and ``better``, a better preset or None.
    """
    _, counts = np.unique(traj.labels, return_counts=True)
    head = None if traj.classifier is None else len(traj.classifier.weight)
    if head is None and isinstance(net, Network):
        head = net.num_classes
    chance = float(counts.max() / counts.sum())
    accuracy, p = traj.accuracy, None
    if accuracy is not None:
        p = float(scipy.stats.binom.sf(round(accuracy * len(traj)) - 1, len(traj), chance))
    facts: dict[str, Any] = {
        "samples": len(traj),
        "samples_per_class": int(counts.min()),
        "duplicates": int(len(traj) - len(np.unique(copies))),
        "relabelled": int((traj.labels != traj.labels[copies]).sum()),
        "classes": {"present": len(counts), "head": head},
        "accuracy": accuracy,
        "chance": chance,
        "chance_p": p,
        "at_chance": p is not None and p > THRESHOLDS["chance_level"],
    }
    if isinstance(net, Network) and net.provenance.claimed_accuracy:
        facts["claimed_accuracy"] = dict(net.provenance.claimed_accuracy)
    if net is not None and isinstance(images, Images):
        last = traj.staged[-1].name
        facts["normalization"] = _normalization(
            net, images, accuracy, {**(reading or {}), "layers": [last]}
        )
    return facts


def copies_in(traj: Trajectory) -> Int[np.ndarray, " n"]:
    """Return for each sample the first sample of which it is a copy (`wgeo.arrays.rows.copies_of`).

    Samples are compared as images if the trajectory begins with the images, otherwise by their
    features at the first and at the last layer. One layer is not enough, because different samples
    can have the same features there.
    """
    first_layer = traj.layers[0]
    features = [first_layer.features]
    if first_layer.stage is not None:
        features.append(traj.layers[-1].features)
    return copies_of(*features)


def _normalization(
    net: Network | nn.Module, images: Images, accuracy: float | None, reading: Mapping[str, Any]
) -> dict[str, Any]:
    normalization = normalization_for(net, images)
    facts: dict[str, Any] = {
        "name": normalization.name,
        "mean": list(normalization.mean),
        "std": list(normalization.std),
        "source": _source(net, images),
    }
    if accuracy is None or accuracy >= THRESHOLDS["good_accuracy"] or facts["source"] == "file":
        return facts
    return {**facts, **_try_presets(net, images, normalization, reading)}


def _source(net: Network | nn.Module, images: Images) -> str:
    if images.normalize is not None:
        return "asked"
    if isinstance(net, Network) and net.normalize is not None:
        return net.provenance.normalize_source or "asked"
    if declared_normalization(net) is not None:
        return "architecture"
    return "none" if images.preset is None else "data"


def _try_presets(
    net: Network | nn.Module,
    images: Images,
    normalization: Normalization,
    reading: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the accuracy with every preset on a few images, and a clearly better preset, if any.

    In `reading`, ``layers`` names a single layer, so that no blocks need to be detected. The result
    is empty if the network cannot classify the images with the normalization that was used.
    """
    rows = spaced_rows(len(images), _MAX_TRIAL_IMAGES)
    subset = replace(images, x=images.x[rows], y=images.y[rows])
    correct: dict[str, np.ndarray] = {}
    candidates = {normalization.name: normalization, **PRESETS}
    for name, preset in candidates.items():
        if len(preset.mean) not in (1, images.shape[0]):
            continue
        try:
            traj = trace(net, replace(subset, normalize=preset), **reading)
        except WgeoError:  # features may overflow if pixels are scaled wrongly
            continue
        if traj.predictions is not None:
            correct[name] = traj.predictions == subset.y
    if normalization.name not in correct:
        return {}
    return {
        "tried": [{"name": name, "accuracy": float(each.mean())} for name, each in correct.items()],
        "images": len(rows),
        "better": better_preset(correct, normalization.name),
    }


def better_preset(correct: Mapping[str, Bool[np.ndarray, " n"]], used: str) -> str | None:
    """Return a preset that classifies significantly more images correctly than `used`, or None.

    `correct` states for each preset whether each image is classified correctly. McNemar's exact
    test considers the images that are classified correctly with only one of two presets. Its
    p-value is multiplied by the number of other presets (Bonferroni).
    """
    others = [name for name in correct if name != used]
    best = max(others, key=lambda name: correct[name].sum(), default=used)
    gained = int((correct[best] & ~correct[used]).sum())
    lost = int((correct[used] & ~correct[best]).sum())
    if gained <= lost:
        return None
    p = scipy.stats.binomtest(gained, gained + lost, alternative="greater").pvalue
    return best if p * len(others) <= THRESHOLDS["significant"] else None

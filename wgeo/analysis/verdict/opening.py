"""The first sentences of every verdict: accuracy, and reasons to doubt the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from ...storage.record import Provenance, Record, Trust
from ...text import counted, percent, printable
from .sentence import THRESHOLDS, Sentence


def reasons_to_doubt(record: Record) -> list[Sentence]:
    trust = record.trust
    return [
        *_accuracy(trust, record.provenance),
        *_normalization(trust),
        *_classes(trust),
        *_samples(trust, has_corrected(record)),
    ]


def _warning(claim: str, words: str, evidence: Mapping[str, Any]) -> Sentence:
    return Sentence(claim, words, evidence, "warning")


def silenced(trust: Trust) -> bool:
    """Return whether nothing else is said: the network only guesses, or there are few samples."""
    few = trust.samples is not None and trust.samples < THRESHOLDS["fewest_samples"]
    return trust.at_chance or few


def has_corrected(record: Record) -> bool:
    """Return whether a layer's NC1 is also given corrected for few samples per class."""
    return any(layer.collapse.measure("nc1_corrected") is not None for layer in record.layers)


def few_samples_note(record: Record) -> str:
    """Return a note for a table of collapse metrics; "" if there are enough samples per class."""
    samples = record.trust.samples_per_class
    if samples is None or samples >= THRESHOLDS["few_a_class"]:
        return ""
    column = " (the column NC1 corrected estimates it without the bias)"
    return (
        f" The smallest class has only {counted(samples, 'sample')}: NC1 is biased"
        f"{column if has_corrected(record) else ''}, and NCC acc. is too high."
    )


def _accuracy(trust: Trust, provenance: Provenance) -> Iterator[Sentence]:
    accuracy, chance, images = trust.accuracy, trust.chance, trust.samples
    if accuracy is None or chance is None or images is None:
        return
    evidence = trust.only("accuracy", "chance", "chance_p", "samples")
    words = (
        f"The network classifies {percent(accuracy)} of these {counted(images, 'image')}"
        f"{origin(provenance)} correctly"
    )
    if trust.at_chance:
        words += (
            f", which is no better than guessing ({percent(chance)}): it does not classify these "
            "images, and the verdict says nothing else about it."
        )
        yield _warning("accuracy", words, evidence)
    else:
        yield Sentence("accuracy", f"{words} (guessing: {percent(chance)}).", evidence, "shown")
    claimed = trust.claimed_accuracy
    stated = claimed.value
    if stated is not None and stated - accuracy > _unsurprising(stated, images):
        yield _warning(
            "accuracy",
            f"Its file states an accuracy of {percent(stated)} ({claimed.key}). The "
            "images may be different or altered, or the pixels may be normalized differently than "
            "in training; then what follows is about the network on these pixels only.",
            {**evidence, "claimed_accuracy": claimed.json},
        )


def _unsurprising(stated: float, images: int) -> float:
    """Return how far the accuracy may be below the one that the file states without a warning."""
    deviation = math.sqrt(max(stated * (1 - stated), 0.0) / max(images, 1))
    sampling = THRESHOLDS["claim_deviations"] * deviation
    return min(THRESHOLDS["below_claim"], max(sampling, THRESHOLDS["near_claim"]))


def origin(provenance: Provenance) -> str:
    """Return the data set and the split, if known, as in `` (digits, train split)``."""
    data, split = provenance.data, provenance.split
    parts = [printable(PurePath(data).name)] if data else []
    if split:
        parts.append(f"{printable(split)} split")
    return f" ({', '.join(parts)})" if parts else ""


def _normalization(trust: Trust) -> Iterator[Sentence]:
    used = trust.normalization
    better = used.better
    if better:
        tried = {row.name: row.accuracy for row in used.tried}
        some = "" if used.images is None else f"{used.images:,} of "
        yield _warning(
            "normalization",
            f"With `normalize='{better}'` the network classifies {percent(tried.get(better))} of "
            f"{some}these images correctly, compared with {percent(tried.get(used.name))} with "
            f"the normalization used ({used.name}): the pixels are probably normalized wrongly, "
            "which makes all numbers below wrong, too.",
            used.json,
        )
    elif used.source in ("data", "none"):
        treatment, basis = "not normalized", ""
        if used.source == "data":
            treatment, basis = f"normalized as {used.name}", " (from the data set)"
        yield _warning(
            "normalization",
            f"The pixels were {treatment}. This is an assumption{basis}, because neither the file "
            "nor the caller says how they were normalized in training.",
            used.only("name", "mean", "std", "source"),
        )


def _classes(trust: Trust) -> Iterator[Sentence]:
    present, head = trust.classes.present, trust.classes.head
    if not present or not head or present == head:
        return
    words = f"The images belong to {present} classes and the network distinguishes {head}"
    if present < head:
        words += "; every statement about classes is about those that occur."
    else:
        words += ", so some labels can never be predicted."
    yield _warning("classes", words, trust.classes.json)


def _samples(trust: Trust, corrected: bool) -> Iterator[Sentence]:
    images, smallest = trust.samples, trust.samples_per_class
    if images is not None and images < THRESHOLDS["fewest_samples"]:
        words = (
            f"There are only {counted(images, 'sample')}; with fewer than "
            f"{THRESHOLDS['fewest_samples']:.0f} the verdict says nothing about the network."
        )
        yield _warning("samples", words, {"samples": images})
        return
    if smallest is not None and smallest < THRESHOLDS["few_a_class"]:
        words = (
            "The smallest class has a single sample: within-class variability is undefined for it."
        )
        if smallest > 1:
            estimates = ", and corrected estimates are given, too" if corrected else ""
            words = (
                f"The smallest class has {counted(smallest, 'sample')}: with so few, the collapse "
                f"metrics are biased{estimates}."
            )
        yield _warning("samples", words, {"samples_per_class": smallest})
    copies, relabelled = trust.duplicates or 0, trust.relabelled or 0
    if copies:
        words = (
            f"{counted(copies, 'image')}{'' if images is None else f' of {images:,}'} "
            f"{'is a copy' if copies == 1 else 'are copies'} of another"
            f"{f', {relabelled:,} under another label' if relabelled else ''}; intervals resample "
            "distinct images."
        )
        yield _warning(
            "samples", words, {"duplicates": copies, "relabelled": relabelled, "samples": images}
        )

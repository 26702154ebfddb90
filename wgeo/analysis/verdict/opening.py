"""The first sentences of every verdict: reasons to doubt the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import PurePath

from ...text import counted, printable
from .sentence import THRESHOLDS, Record, Sentence
from .wording import percent


def opening(trust: Record, provenance: Record | None = None) -> list[Sentence]:
    """Return the sentences about accuracy, normalization, classes and samples."""
    return [
        *_accuracy(trust, provenance or {}),
        *_normalization(trust),
        *_classes(trust),
        *_samples(trust),
    ]


def silenced(trust: Record) -> bool:
    """Return whether the verdict ends here, since the network guesses or samples are too few."""
    samples = trust.get("samples")
    few = samples is not None and samples < THRESHOLDS["fewest_samples"]
    return bool(trust.get("at_chance")) or few


def few_samples_note(trust: Record) -> str:
    """Return a note for a table of collapse metrics if there are few samples per class, else ""."""
    samples = trust.get("samples_per_class")
    if samples is None or samples >= THRESHOLDS["few_a_class"]:
        return ""
    return (
        f" The smallest class has only {counted(samples, 'sample')}: NC1 is biased, and NC1 "
        "corrected estimates it without the bias; NCC acc. is too high."
    )


def _accuracy(trust: Record, provenance: Record) -> Iterator[Sentence]:
    accuracy, chance, images = (trust.get(key) for key in ("accuracy", "chance", "samples"))
    if accuracy is None or chance is None or images is None:
        return
    evidence = {key: trust.get(key) for key in ("accuracy", "chance", "chance_p", "samples")}
    sentence = (
        f"The network classifies {percent(accuracy)} of these {counted(images, 'image')}"
        f"{origin(provenance)} correctly"
    )
    if trust.get("at_chance"):
        yield Sentence(
            "accuracy",
            f"{sentence}, which is no better than guessing ({percent(chance)}): it does not "
            "classify these images, and the verdict says nothing else about it.",
            evidence,
            "warning",
        )
    else:
        yield Sentence("accuracy", f"{sentence} (guessing: {percent(chance)}).", evidence, "shown")
    claimed = trust.get("claimed_accuracy")
    if claimed and claimed["value"] - accuracy > _unsurprising(claimed["value"], images):
        yield Sentence(
            "accuracy",
            f"Its file states an accuracy of {percent(claimed['value'])} ({claimed['key']}). The "
            "images may be different or altered, or the pixels may be normalized differently than "
            "in training; then what follows is about the network on these pixels only.",
            {**evidence, "claimed_accuracy": claimed},
            "warning",
        )


def _unsurprising(stated: float, images: int) -> float:
    """Return the largest shortfall of the accuracy that is left without a warning."""
    deviation = math.sqrt(max(stated * (1 - stated), 0.0) / max(images, 1))
    sampling = THRESHOLDS["claim_deviations"] * deviation
    return min(THRESHOLDS["below_claim"], max(sampling, THRESHOLDS["near_claim"]))


def origin(provenance: Record) -> str:
    """Return text such as `` (digits, train split)``: data set and split, as far as known."""
    data, split = provenance.get("data"), provenance.get("split")
    parts = [printable(PurePath(str(data)).name)] if data else []
    if split:
        parts.append(f"{printable(str(split))} split")
    return f" ({', '.join(parts)})" if parts else ""


_SOURCES = {
    "architecture": "published checkpoints of this architecture",
    "data": "the data set",
    "none": "nothing: pixels stay in [0, 1]",
}


def _normalization(trust: Record) -> Iterator[Sentence]:
    used = trust.get("normalization") or {}
    better = used.get("better")
    if better:
        tried = {row["name"]: row["accuracy"] for row in used["tried"]}
        yield Sentence(
            "normalization",
            f"With `normalize='{better}'` the network classifies {percent(tried[better])} of "
            f"{used['images']} of these images correctly, compared with "
            f"{percent(tried[used['name']])} with the normalization used ({used['name']}): the "
            "pixels are probably normalized wrongly, which makes all numbers below wrong, too.",
            {**used},
            "warning",
        )
    elif used.get("source") in ("data", "none"):
        origin = _SOURCES[used["source"]]
        treatment = (
            "not normalized" if used["source"] == "none" else f"normalized as {used['name']}"
        )
        yield Sentence(
            "normalization",
            f"The pixels were {treatment}. This is an assumption (from {origin}), because neither "
            "the file nor the caller says how they were normalized in training."
            if used["source"] == "data"
            else "The pixels were not normalized. This is an assumption, because neither the file "
            "nor the caller says how they were normalized in training.",
            {key: used.get(key) for key in ("name", "mean", "std", "source")},
            "warning",
        )


def _classes(trust: Record) -> Iterator[Sentence]:
    classes = trust.get("classes") or {}
    present, head = classes.get("present"), classes.get("head")
    if not present or not head or present == head:
        return
    missing = present < head
    yield Sentence(
        "classes",
        f"The images belong to {present} classes and the network distinguishes {head}"
        + (
            "; every statement about classes is about those that occur."
            if missing
            else ", so some labels can never be predicted."
        ),
        dict(classes),
        "warning",
    )


def _samples(trust: Record) -> Iterator[Sentence]:
    images, smallest = trust.get("samples"), trust.get("samples_per_class")
    if images is not None and images < THRESHOLDS["fewest_samples"]:
        yield Sentence(
            "samples",
            f"There are only {counted(images, 'sample')}; with fewer than "
            f"{THRESHOLDS['fewest_samples']:.0f} the verdict says nothing about the network.",
            {"samples": images},
            "warning",
        )
        return
    if smallest is not None and smallest < THRESHOLDS["few_a_class"]:
        yield Sentence(
            "samples",
            f"The smallest class has {counted(smallest, 'sample')}: with so few, the "
            "collapse metrics are biased, and corrected estimates are given, too."
            if smallest > 1
            else "The smallest class has a single sample: within-class variability is undefined "
            "for it.",
            {"samples_per_class": smallest},
            "warning",
        )
    copies, relabelled = trust.get("duplicates") or 0, trust.get("relabelled") or 0
    if copies:
        yield Sentence(
            "samples",
            f"{counted(copies, 'image')} of {images:,} "
            f"{'is a copy' if copies == 1 else 'are copies'} of another"
            f"{f', {relabelled:,} under another label' if relabelled else ''}; intervals resample "
            "distinct images.",
            {"duplicates": copies, "relabelled": relabelled, "samples": images},
            "warning",
        )

"""The headline: one sentence composed from the evidence of all sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...storage.record import Trust
from ...text import counted, percent, stage_number
from .opening import silenced
from .sentence import Sentence, Strength
from .wording import listed


def compose(verdict: Sequence[Sentence], trust: Trust) -> Sentence:
    """Return the headline of a verdict: shape of the path, collapse, certainty, and doubts."""
    if silenced(trust):
        return _silence(trust)
    paths = [s for s in verdict if s.claim == "straightness"]
    classes = [s for s in verdict if s.claim == "collapse"]
    statements = [*_straightness(paths), *_collapse(classes)]
    warnings = (s for s in verdict if s.strength == "warning")
    doubts = list(dict.fromkeys(_DOUBTS[s.claim](s) for s in warnings))
    decided = [s for s in (*paths, *classes) if s.evidence.get("shape") or s.evidence.get("level")]
    certainty, strength = _certainty(decided, len(decided) < len(paths) + len(classes), trust)
    words = f"{', and '.join(statements) or 'Nothing was measured'}{certainty}"
    if doubts:
        noun = "a reason" if len(doubts) == 1 else "reasons"
        words += f"; {noun} for doubt: {listed(doubts)}"
    evidence = {
        "shapes": [s.evidence.get("shape") for s in paths],
        "level": classes[0].evidence.get("level") if classes else None,
        "doubts": doubts,
    }
    return Sentence("headline", f"{words[:1].upper()}{words[1:]}.", evidence, strength)


def _silence(trust: Trust) -> Sentence:
    samples = trust.samples or 0
    if trust.at_chance:
        words = (
            f"The network does not classify these images: {percent(trust.accuracy)} of "
            f"{counted(samples, 'image')} are classified correctly, no better than "
            f"guessing ({percent(trust.chance)}), so nothing else is said about it."
        )
    else:
        words = (
            f"{counted(samples, 'sample').capitalize()} are too few to say anything "
            "about the network."
        )
    return Sentence("headline", words, {"samples": trust.samples}, "warning")


def _straightness(paths: Sequence[Sentence]) -> list[str]:
    """State the shape of the path in each stage; stages of the same shape are named together."""
    if not paths:
        return []
    if not paths[0].evidence:
        return ["straightness is not measured, because no two layers in a row share a space"]
    stages: dict[str, list[str]] = {}
    for i, path in enumerate(paths):
        number = stage_number(path.evidence.get("stage"), i)
        stages.setdefault(_name_of_shape(path), []).append(str(number))
    if len(stages) > 1:
        shapes = [
            f"{shape} in stage{'s' * (len(numbers) > 1)} {listed(numbers)}"
            for shape, numbers in stages.items()
        ]
        return [f"the path of the features is {listed(shapes)}"]
    (shape,) = stages
    extent = f"in each of its {len(paths)} stages" if len(paths) > 1 else "through the network"
    return [f"the path of the features {extent} is {shape}"]


def _name_of_shape(path: Sentence) -> str:
    if "shape" not in path.evidence:
        return "not judged"
    return _between(path.evidence["shape"]) or "of undecided shape"


def _between(names: Sequence[str]) -> str:
    return f"between {listed(names)}" if len(names) > 1 else "".join(names)


def _collapse(classes: Sequence[Sentence]) -> list[str]:
    if not classes:
        return []
    evidence = classes[0].evidence
    if not evidence.get("level"):
        return ["whether the classes collapse is undecided"]
    return [f"the classes are {_between(evidence['level'])} at the last layer{_trend(evidence)}"]


def _trend(evidence: Mapping[str, Any]) -> str:
    """State whether the classes become tighter with depth, if Kendall's tau is clearly not 0."""
    ends = evidence.get("kendall_interval")
    tau = evidence.get("kendall_tau")
    if tau is None or not ends or ends[0] <= 0 <= ends[1]:
        return ""
    return f", having become {'tighter' if tau < 0 else 'wider'} with depth"


def _certainty(
    decided: Sequence[Sentence], some_undecided: bool, trust: Trust
) -> tuple[str, Strength]:
    if not decided:
        return "", "undecided"
    samples = trust.samples
    images = f" over {counted(samples, 'image')}" if samples else ""
    if any(s.evidence.get("interval") is None for s in decided):
        return " (suggested by a value without an interval)", "suggested"
    if any(s.strength != "shown" for s in decided):
        return f" (95 % intervals{images} do not settle all of this)", "suggested"
    what = "what is decided" if some_undecided else "this"
    return f" (95 % intervals{images} support {what})", "shown"


_DOUBTS = {  # a short reason for doubt for each claim that can be a warning
    "accuracy": lambda _: "the accuracy is lower than the file states",
    "normalization": lambda s: (
        "the pixels are probably normalized wrongly"
        if s.evidence.get("better")
        else "how pixels were normalized in training is an assumption"
    ),
    "classes": lambda _: "the images and the network have different numbers of classes",
    "samples": lambda s: (
        "some images are copies" if "duplicates" in s.evidence else "the smallest class is small"
    ),
}

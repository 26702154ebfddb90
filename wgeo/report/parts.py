"""Parts of the pages of a report: figures, titles, and numbers as they are printed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..plots.sources import Plot
from ..plots.style import has_resolution, short_names
from ..storage.record import Block, Layer, Measured, Record, Segment
from ..text import stage_number
from .text import DASH, fixed, plain, with_interval

Plots = Mapping[str, Plot]


def figure_block(plots: Plots, stem: str) -> str:
    """Return the figure `stem`, its caption and links; an empty text if it was not drawn."""
    plot = plots.get(stem)
    if plot is None:
        return ""
    files = f"figures/{stem}"
    links = " · ".join(
        f"{{download}}`{name} <{files}.{ending}>`"
        for name, ending in (("data", "csv"), ("PNG", "png"), ("SVG", "svg"))
    )
    alt = json.dumps(plot.alt, ensure_ascii=False)  # a JSON string is a valid YAML string
    return f"```{{figure}} {files}.*\n:alt: {alt}\n\n{plot.caption} ({links})\n```"


def last_means(record: Record) -> str:
    """Return the stem of the figure on the first page: the class means in the last segment."""
    return f"class-means-{len(record.segments)}"


def base_name(path: Any) -> str:
    """Return the last component of a path from any operating system, to hide the folders."""
    return str(path).replace("\\", "/").rstrip("/").rpartition("/")[2] or str(path)


def join(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def names_of(names: Iterable[str]) -> list[str]:
    return [plain(name) for name in short_names(list(names), 40)]


def layer_title(name: str) -> str:
    """Return a layer's name, or a description if the layer is the output of a shortcut."""
    block, _, child = name.rpartition(".")
    return f"input of {block}, mapped by its shortcut" if block and child == "shortcut" else name


def stage_ends(segment: Segment, layers: Sequence[Layer]) -> Sequence[Layer]:
    """Return the layers before a segment's first block and after its last; () if unknown.

    If the segment begins with the output of a shortcut, the first is the layer before the segment.
    """
    names = segment.layers
    positions = {layer.name: i for i, layer in enumerate(layers)}
    inner = [positions[name] for name in names if name in positions]
    if not inner:
        return ()
    return layers[max(inner[0] - (names[0] not in positions), 0)], layers[inner[-1]]


def stage_title(segment: Segment, index: int, layers: Sequence[Layer]) -> str:
    """Return ``Stage 2, layer1.2 → layer2.2``; the number alone if the layers are unknown."""
    names = short_names([layer.name for layer in stage_ends(segment, layers)], 20)
    number = stage_number(segment.stage, index)
    return f"Stage {number}{', ' if names else ''}{' → '.join(names)}"


def path_descriptions(record: Record) -> list[str]:
    """Return the verdict on each segment's shape: "bent", "between ... and ..." or "undecided".

    It is a dash if the verdict does not judge the shape.
    """
    by_ends = {
        tuple(s.evidence.get("layers") or ()): s.evidence.get("shape")
        for s in record.verdict
        if s.claim == "straightness" and s.evidence
    }
    ends = [segment.layers or ("",) for segment in record.segments]
    return [_path_description(by_ends.get((names[0], names[-1]))) for names in ends]


def _path_description(names: Any) -> str:
    if not isinstance(names, list):
        return DASH
    text = " and ".join(plain(name) for name in names)
    return f"between {text}" if len(names) > 1 else text or "undecided"


def score(item: Block | Segment) -> str:
    """Return the OT score, in parentheses unless the resolution is known to be sufficient."""
    text = fixed(item.ot_score, 4)
    return text if text == DASH or has_resolution(item) else f"({text})"


def correlation(item: Block | Segment) -> str:
    """Return the correlation score, in parentheses unless null maps score clearly lower."""
    text = fixed(item.measure("corr_score"), 4)
    return text if text == DASH or item.power else f"({text})"


def highest_null(item: Block | Segment) -> str:
    return fixed(item.highest_null, 3)


def value_with_interval(source: Measured, key: str, decimals: int = 2) -> str:
    return with_interval(source.measure(key), source.interval(key), decimals)


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested settings into rows of a table, named "outer: inner"; skip empty values."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            rows += flat(value, f"{name}: ")
        elif isinstance(value, list) and len(value) > 12:
            rows.append((plain(name), f"{len(value)} values, see analysis\\.json"))
        elif value not in (None, "", []):
            shown = f"{value:.6g}" if isinstance(value, float) else value
            rows.append((plain(name), plain(shown, 400)))
    return rows

"""Parts of the pages of a report: figures, titles, and numbers as they are printed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..plots import style
from ..plots.plot import Plot
from ..plots.style import has_resolution, short_names
from ..text import stage_number
from .text import DASH, fixed, plain, with_interval

Record = Mapping[str, Any]
Plots = Mapping[str, Plot]


def figure_block(plots: Plots, stem: str, *, caption: bool = True) -> str:
    """Return a figure directive with links to its files; empty if there is no such figure.

    `stem` is the name of the figure's files without their extension.
    """
    plot = plots.get(stem)
    if plot is None:
        return ""
    files = f"figures/{stem}"
    links = " · ".join(
        f"{{download}}`{name} <{files}.{ending}>`"
        for name, ending in (("data", "csv"), ("PNG", "png"), ("SVG", "svg"))
    )
    text = f"{plot.caption} " if caption else ""
    alt = json.dumps(plot.alt, ensure_ascii=False)  # a JSON string is a valid YAML string
    return f"```{{figure}} {files}.*\n:alt: {alt}\n\n{text}({links})\n```"


def join(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def names_of(items: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    """Return the names that items have under `key`, shortened and escaped."""
    return [plain(name) for name in short_names([item.get(key) for item in items], 40)]


def layer_title(name: Any) -> str:
    """Return a layer's name, or a description if the layer is the output of a shortcut."""
    block, _, child = str(name).rpartition(".")
    return f"input of {block}, mapped by its shortcut" if block and child == "shortcut" else name


def stage_ends(segment: Mapping[str, Any], layers: Sequence[Any]) -> Sequence[Any]:
    """Return the layers before a segment's first block and after its last; () if unknown.

    They are entries of `layers`, a record's list. The first is the layer before the segment if the
    segment begins with the output of a shortcut.
    """
    names = segment.get("layers") or []
    positions = {layer.get("name"): i for i, layer in enumerate(layers)}
    inner = [positions[name] for name in names if name in positions]
    if not inner:
        return ()
    return layers[max(inner[0] - (names[0] not in positions), 0)], layers[inner[-1]]


def stage_title(segment: Mapping[str, Any], index: int, layers: Sequence[Any]) -> str:
    """Return ``Stage 2, layer1.2 → layer2.2``; the number alone if the layers are unknown."""
    names = short_names([layer.get("name") for layer in stage_ends(segment, layers)], 20)
    number = stage_number(segment.get("stage"), index)
    return f"Stage {number}{', ' if names else ''}{' → '.join(names)}"


def path_descriptions(record: Record) -> list[str]:
    """Describe each segment's path as the verdict does; a dash if it says nothing about the path.

    A description is a category, such as "bent", "between" two categories, or "undecided".
    """
    by_ends = {
        tuple(s["evidence"].get("layers") or ()): s["evidence"].get("shape")
        for s in record.get("verdict") or []
        if s.get("claim") == "straightness" and s.get("evidence")
    }
    ends = [segment.get("layers") or [None] for segment in record.get("segments") or []]
    return [_path_description(by_ends.get((names[0], names[-1]))) for names in ends]


def _path_description(names: Any) -> str:
    if not isinstance(names, list):
        return DASH
    text = " and ".join(plain(name) for name in names)
    return f"between {text}" if len(names) > 1 else text or "undecided"


def interval(item: Mapping[str, Any], key: str) -> Any:
    """Return the interval of the value that an item has under `key`, or None."""
    return (item.get("intervals") or {}).get(key)


def score(item: Mapping[str, Any]) -> str:
    """Return the OT score, in parentheses unless the resolution is known to be sufficient."""
    text = fixed(item.get("ot_score"), 4)
    return text if text == DASH or has_resolution(item) else f"({text})"


def correlation(item: Mapping[str, Any]) -> str:
    """Return the correlation score, in parentheses unless null maps score clearly lower."""
    text = fixed((item.get("corr_score") or [None])[0], 4)
    return text if text == DASH or item.get("power") else f"({text})"


def highest_null(item: Mapping[str, Any]) -> str:
    """Return the highest certified upper bound on the correlation scores of null maps."""
    return fixed(style.highest_null(item), 3)


def centered(item: Mapping[str, Any], key: str, decimals: int = 2) -> str:
    """Return a measure of the centered path with its interval."""
    measures = item.get("centred") or {}  # the record's key is spelled like this
    return with_interval(measures.get(key), interval(measures, key), decimals)


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested settings into rows of a table, "outer: inner"; skip empty values."""
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

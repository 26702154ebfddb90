"""Building blocks of the pages of a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..plots import style
from ..plots.plot import Plot
from ..plots.style import resolved, short_names
from .text import DASH, fixed, plain, with_interval

Record = Mapping[str, Any]
Plots = Mapping[str, Plot]


def figure_block(plots: Plots, stem: str, *, caption: bool = True) -> str:
    plot = plots.get(stem)
    if plot is None:
        return ""
    files = f"figures/{stem}"
    links = " · ".join(
        f"{{download}}`{name} <{files}.{ending}>`"
        for name, ending in (("data", "csv"), ("PNG", "png"), ("SVG", "svg"))
    )
    text = f"{plot.caption} " if caption else ""
    alt = json.dumps(
        plot.alt, ensure_ascii=False
    )  # also a quoted string in the YAML of the options
    return f"```{{figure}} {files}.*\n:alt: {alt}\n\n{text}({links})\n```"


def join(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def names_of(items: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    return [plain(name) for name in short_names([item.get(key) for item in items], 40)]


def interval(item: Mapping[str, Any], key: str) -> Any:
    return (item.get("intervals") or {}).get(key)


def score(item: Mapping[str, Any]) -> str:
    """Return the OT score, in brackets if the sample's resolution is too low."""
    text = fixed(item.get("ot_score"), 4)
    return text if text == DASH or resolved(item) else f"({text})"


def correlation(item: Mapping[str, Any]) -> str:
    """Return the correlation score, in brackets unless null maps score clearly lower."""
    text = fixed((item.get("corr_score") or [None])[0], 4)
    return text if text == DASH or item.get("power") else f"({text})"


def highest_null(item: Mapping[str, Any]) -> str:
    """Return the highest certified bound on the correlation scores of null maps."""
    return fixed(style.highest_null(item), 3)


def centred(item: Mapping[str, Any], key: str, decimals: int = 2) -> str:
    """Return a measure of the centred path with its interval."""
    twin = item.get("centred") or {}
    return with_interval(twin.get(key), (twin.get("intervals") or {}).get(key), decimals)


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

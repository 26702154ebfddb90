"""The pages of a report: a record in, Markdown out. What is computed is in the record."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..plots import METRICS, RATIOS, Plot, catalogue
from ..plots.style import resolved, segment_name, short, short_names
from .assets import asset
from .text import DASH, code, figure, fixed, key_values, plain, share, table, with_interval

Record = Mapping[str, Any]


def pages(record: Record) -> dict[str, str]:
    """Every page of the report by name, its Markdown; ``index`` holds the table of contents."""
    plots = {plot.stem: plot for plot in catalogue(record)}
    made: dict[str, str] = {}
    for name, write in _PAGES.items():
        text = write(record, plots)
        if text:
            made[name] = text
    return {"index": _index(record, plots, list(made)), **made}


# --- parts ---------------------------------------------------------------------------------------


def title(record: Record) -> str:
    """What the report is about: network and data, as plain text on one line."""
    about = record.get("provenance") or {}
    net, data = about.get("arch") or "Features", about.get("data")
    return short(net, 60) + (f" on {short(_base(data), 60)}" if data else "")


def _base(path: Any) -> str:
    """The last component of a path, from any system: whose folders it lies in is nobody's news."""
    return str(path).replace("\\", "/").rstrip("/").rpartition("/")[2] or str(path)


def _figure(plots: Mapping[str, Plot], stem: str, *, caption: bool = True) -> str:
    plot = plots.get(stem)
    if plot is None:
        return ""
    files = f"figures/{stem}"
    links = " · ".join(
        f"{{download}}`{name} <{files}.{ending}>`"
        for name, ending in (("data", "csv"), ("PNG", "png"), ("SVG", "svg"))
    )
    words = f"{plot.caption} " if caption else ""
    alt = json.dumps(plot.alt, ensure_ascii=False)  # a quoted string in the options' YAML too
    return f"```{{figure}} {files}.*\n:alt: {alt}\n\n{words}({links})\n```"


def _join(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _names(items: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    return [plain(name) for name in short_names([item.get(key) for item in items], 40)]


# --- pages ---------------------------------------------------------------------------------------


def _index(record: Record, plots: Mapping[str, Plot], others: Sequence[str]) -> str:
    segments = record.get("segments") or []
    last = f"class-means-{len(segments)}"
    toc = "\n".join(["```{toctree}", ":hidden:", ":maxdepth: 1", "", *others, "```"])
    return _join(
        f"# {plain(title(record))}",
        _lead(record),
        _verdict(record),
        "## At a glance",
        _glance(record),
        _figure(plots, last),
        _figure(plots, "straightness", caption=False),
        _figure(plots, "collapse", caption=False),
        "Every figure and table is explained where it belongs: [](straightness.md), "
        "[](collapse.md), and [](methods.md) for the definitions."
        if {"straightness", "collapse"} <= set(others)
        else "",
        toc,
    )


def _lead(record: Record) -> str:
    about = record.get("provenance") or {}
    samples, split = about.get("samples"), about.get("split")
    images = f"{figure(samples)} {plain(split) + ' ' if split else ''}samples" if samples else ""
    said = [
        images,
        f"accuracy {share(record.get('accuracy'))}" if record.get("accuracy") is not None else "",
        f"{len(record.get('layers') or [])} layers",
        f"{len(record.get('blocks') or [])} blocks",
        f"features: {plain(about['pool'])}" if about.get("pool") else "",
    ]
    return ", ".join(part for part in said if part) + "."


def _verdict(record: Record) -> str:
    """The record's verdict, a line a sentence."""
    said = record.get("verdict")
    if not said:
        return ""
    sentences = [plain(s) for s in re.split(r"(?<=[.!?])\s+(?=[A-Z])", str(said).strip())]
    text = "\n".join(f"- {s}" for s in sentences) if len(sentences) > 1 else sentences[0]
    return f"```````{{admonition}} Verdict\n:class: tip\n\n{text}\n```````"


def _glance(record: Record) -> str:
    """A row a segment: is it straight, is it optimal, do the classes collapse on the way."""
    layers = record.get("layers") or []
    places = {layer.get("name"): i for i, layer in enumerate(layers)}

    def change(segment: Mapping[str, Any], metric: str, show: Callable[[Any], str]) -> str:
        """From the layer that enters the segment's first block to the one that leaves its last."""
        known = [places[name] for name in segment.get("layers") or () if name in places]
        if not known:
            return DASH
        # A stage that opens with its shortcut's image of a layer is entered by that layer.
        entry = known[0] - (segment["layers"][0] not in places)
        ends = (layers[i].get("collapse") or {} for i in (max(entry, 0), known[-1]))
        return " → ".join(show(end.get(metric)) for end in ends)

    rows = [
        [
            plain(segment_name(s, i)),
            with_interval(s.get("length_ratio"), _interval(s, "length_ratio")),
            _score(s),
            change(s, "nc1", figure),
            change(s, "ncc_accuracy", share),
        ]
        for i, s in enumerate(record.get("segments") or [])
    ]
    if not rows:
        return "This record has no segment of at least two layers in one feature space."
    header = ("Segment", "W2 length ratio", "OT score", "NC1", "Nearest-centre accuracy")
    return table(
        header, rows, "Each run of layers in one feature space; 95 % intervals in brackets."
    )


def _interval(item: Mapping[str, Any], key: str) -> Any:
    return (item.get("intervals") or {}).get(key)


def _score(item: Mapping[str, Any]) -> str:
    """The OT score, in brackets where the sample has not the resolution to give it a meaning."""
    text = fixed(item.get("ot_score"), 4)
    return text if text == DASH or resolved(item) else f"({text})"


def _transport(record: Record, plots: Mapping[str, Plot]) -> str:
    blocks = record.get("blocks") or []
    if not blocks:
        return ""
    certified = sum(block.get("status") == "certified" for block in blocks)
    rows = [
        [
            name,
            figure(b.get("distance"), 5),
            f"[{figure(b.get('lower'), 5)}, {figure(b.get('upper'), 5)}]",
            figure(b.get("paired"), 5),
            _score(b),
            fixed(b.get("resolution"), 2),
            plain(b.get("status") or DASH),
        ]
        for name, b in zip(_names(blocks, "target"), blocks, strict=True)
    ]
    header = ("Block", "W2", "contained in", "own pairing", "OT score", "resolution", "status")
    return _join(
        "# Transport",
        "Each block maps the features of one layer to those of the next. W2 is the least root mean "
        "squared distance by which any pairing carries the one distribution to the other; the "
        "network's own pairing moves every sample to itself one layer on. Where a block changes "
        "the feature space, its input is carried over by the block's own shortcut.",
        f"{certified} of {len(blocks)} distances are certified: their interval, proved by a "
        "feasible coupling above and feasible dual potentials below, is closed to within the "
        "solver's tolerance. Scores in brackets have a resolution below 1/2: the samples move so "
        "little against their spacing that any map would score 1.",
        _figure(plots, "distances"),
        table(header, rows, "Transport of every block; distances in units of the features."),
    )


def _straightness(record: Record, plots: Mapping[str, Plot]) -> str:
    segments = record.get("segments") or []
    if not segments:
        return ""
    rows = [
        [name, *(show(s) for s in segments)]
        for name, show in (
            ("W2 end to end", lambda s: figure(s.get("distance"), 4)),
            ("sum of the blocks' W2", lambda s: figure(s.get("length"), 4)),
            *((label, _measured(key)) for key, label in RATIOS.items()),
            ("OT score", _score),
            ("resolution", lambda s: fixed(s.get("resolution"), 2)),
            ("mean turning angle (degrees)", lambda s: fixed(s.get("turning_angle"), 0)),
            ("largest interpolation gap", lambda s: fixed(_largest_gap(s))),
        )
    ]
    header = ("", *(plain(segment_name(s, i)) for i, s in enumerate(segments)))
    means = [stem for stem in plots if stem.startswith("class-means-")]
    return _join(
        "# Straightness",
        "On a geodesic of Wasserstein space, run at constant speed, every ratio is 1. The length "
        "and action ratios compare distributions; the line-shape figures follow each sample's own "
        "path. [How they are defined](methods.md).",
        _figure(plots, "straightness"),
        table(header, rows, "Straightness of every segment; 95 % intervals in brackets."),
        "## Where the classes go" if means else "",
        *(_figure(plots, stem, caption=stem == means[0]) for stem in means),
    )


def _measured(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda segment: with_interval(segment.get(key), _interval(segment, key))


def _largest_gap(segment: Mapping[str, Any]) -> float | None:
    gaps = [gap for gap in segment.get("interpolation_gap") or () if gap is not None]
    return max(gaps, default=None)


_LAYER_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "nc1": ("NC1", figure),
    "cdnv": ("CDNV", figure),
    "nc2_equinorm": ("norms", figure),
    "nc2_equiangle": ("angles", figure),
    "nc2_etf": ("to ETF", figure),
    "ncc_accuracy": ("nearest centre", share),
    "effective_rank": ("eff. rank", figure),
}


def _collapse(record: Record, plots: Mapping[str, Plot]) -> str:
    layers = record.get("layers") or []
    if not layers:
        return ""
    metrics = [layer.get("collapse") or {} for layer in layers]
    rows = [
        [
            name,
            figure(layer.get("width")),
            *(show(m.get(k)) for k, (_, show) in _LAYER_COLUMNS.items()),
        ]
        for name, layer, m in zip(_names(layers, "name"), layers, metrics, strict=True)
    ]
    header = ("Layer", "width", *(name for name, _ in _LAYER_COLUMNS.values()))
    return _join(
        "# Collapse",
        "How far the classes have collapsed at each layer: samples onto their class mean (NC1, "
        "CDNV), class means onto a simplex equiangular tight frame (NC2: equal norms, equal "
        "angles, distance to the frame), decisions onto the nearest class centre. All but the "
        "accuracy and the rank are 0 at complete collapse. [How they are defined](methods.md).",
        _figure(plots, "collapse"),
        _progress(record),
        table(header, rows, "Collapse metrics of every layer."),
        _last_layer(metrics[-1]),
        _undefined(layers),
    )


def _progress(record: Record) -> str:
    """Does each metric fall from the first block to the last?"""
    rows = []
    for metric, p in (record.get("progress") or {}).items():
        if not isinstance(p, Mapping):
            continue
        falls = {True: "yes", False: "no", None: DASH}[p.get("monotone")]
        tau = with_interval(p.get("kendall_tau"), p.get("interval"))
        reached = plain(p["reached"], 40) if p.get("reached") else DASH
        rises = figure(p.get("violations"))
        rows.append([plain(METRICS.get(metric, metric)), falls, tau, rises, reached])
    if not rows:
        return ""
    header = ("Metric", "falls throughout", "Kendall's τ", "rises", "90 % of the fall by")
    return table(header, rows, "Progressive collapse: does each metric fall with depth?")


_LAST: dict[str, str] = {
    "nc3": "NC3, classifier to class means (Zhu et al.)",
    "nc3_papyan": "NC3, classifier to class means (Papyan et al.)",
    "ncc_mismatch": "NC4, disagreement with the nearest centre",
    "nc5": "NC5, class means to out-of-distribution mean",
}


def _last_layer(metrics: Mapping[str, Any]) -> str:
    known = [(plain(name), figure(metrics[key])) for key, name in _LAST.items() if metrics.get(key)]
    return key_values(known, "At the last layer.") if known else ""


def _undefined(layers: Sequence[Mapping[str, Any]]) -> str:
    """Why a dash is a dash, each reason once."""
    reasons: dict[str, list[str]] = {}
    for layer in layers:
        for metric, why in ((layer.get("collapse") or {}).get("undefined") or {}).items():
            reasons.setdefault(f"{plain(metric)}: {plain(why)}", []).append(
                plain(layer["name"], 40)
            )
    said = [
        f"- {why} ({', '.join(names[:3])}{', …' * (len(names) > 3)})"
        for why, names in reasons.items()
    ]
    return _join("Undefined values:", "\n".join(said)) if said else ""


_MODELS = {
    "geodesic_model": (
        "Geodesic model",
        "Features at each layer are predicted by the straight line from the segment's first layer "
        "to its last: what a network on a constant-speed geodesic would have.",
    ),
    "mufm": (
        "MUFM",
        "The multilayer unconstrained feature model, fitted to the features that enter the segment "
        "and to the labels.",
    ),
}


def _models(record: Record, plots: Mapping[str, Plot]) -> str:
    parts = [_model(record, key) for key in _MODELS if record.get(key)]
    if not parts:
        return ""
    return _join(
        "# Models",
        "What theory predicts for every layer, beside what was measured there. R² is 1 where the "
        "prediction is perfect and 0 where it is as far off as predicting that nothing moves.",
        *parts,
        _figure(plots, "collapse", caption=False),
    )


def _model(record: Record, key: str) -> str:
    name, words = _MODELS[key]
    model = record[key]
    measured = {la.get("name"): la.get("collapse") or {} for la in record.get("layers") or []}
    layers = [layer for layer in model.get("layers") or [] if isinstance(layer, Mapping)]
    rows = []
    for label, layer in zip(_names(layers, "name"), layers, strict=True):
        said, seen = layer.get("collapse") or layer, measured.get(layer.get("name"), {})
        pairs = (
            f"{figure(seen.get(m))} / {figure(said.get(m))}" for m in ("nc1", "cdnv", "nc2_etf")
        )
        rows.append(
            [label, fixed(layer.get("r2"), 3), fixed(layer.get("relative_error"), 3), *pairs]
        )
    header = ("Layer", "R²", "relative error", "NC1", "CDNV", "distance to ETF")
    skipped = model.get("skipped")
    fitted = _flat({k: v for k, v in model.items() if k not in ("layers", "skipped")})
    return _join(
        f"## {name}",
        words,
        f"Not fitted: {plain(skipped)}" if skipped else "",
        table(header, rows, f"{name}: measured / predicted.") if rows else "",
        key_values(fitted, f"{name}, as fitted.") if fitted else "",
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as rows of a table, "outer: inner"; what is empty is left out."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            rows += _flat(value, f"{name}: ")
        elif isinstance(value, list) and len(value) > 12:
            rows.append((plain(name), f"{len(value)} values, see analysis\\.json"))
        elif value not in (None, "", []):
            shown = f"{value:.6g}" if isinstance(value, float) else value
            rows.append((plain(name), plain(shown, 400)))
    return rows


def _methods(record: Record, plots: Mapping[str, Plot]) -> str:
    return asset("methods.md")


def _provenance(record: Record, plots: Mapping[str, Plot]) -> str:
    about = dict(record.get("provenance") or {})
    names = about.pop("class_names", None) or []
    about |= {key: record.get(key) for key in ("created", "device", "seed", "schema")}
    pairs = _flat(about)
    if names:
        pairs.append(("classes", plain(", ".join(map(str, names)), 400)))
    versions = [(plain(k), plain(v)) for k, v in (record.get("versions") or {}).items()]
    return _join(
        "# Provenance",
        "Everything needed to make these numbers again, and the numbers themselves: "
        "{download}`analysis.json <analysis.json>`.",
        "## Command",
        code(str(record.get("command") or "")) if record.get("command") else "Not recorded.",
        "## What was analysed",
        key_values(pairs, "Network, data and settings.") if pairs else "Not recorded.",
        "## Versions",
        key_values(versions, "Software that could change a number.")
        if versions
        else "Not recorded.",
    )


_PAGES: dict[str, Callable[[Record, Mapping[str, Plot]], str]] = {
    "transport": _transport,
    "straightness": _straightness,
    "collapse": _collapse,
    "models": _models,
    "methods": _methods,
    "provenance": _provenance,
}

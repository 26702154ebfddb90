"""The pages of a report: a record in, Markdown out. What is computed is in the record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..plots.composed import catalogue
from ..plots.depth import ROUNDING
from ..plots.style import number, segment_name, short
from .assets import asset
from .measured import collapse, straightness, transport
from .parts import (
    Plots,
    Record,
    centred,
    correlation,
    figure_block,
    flat,
    interval,
    join,
    names_of,
)
from .series import series_title, side_by_side
from .text import (
    DASH,
    code,
    figure,
    fixed,
    key_values,
    plain,
    sentence,
    share,
    table,
    with_interval,
)


def pages(record: Record) -> dict[str, str]:
    """Every page of the report by name, its Markdown; ``index`` holds the table of contents."""
    plots = {plot.stem: plot for plot in catalogue(record)}
    if "analyses" in record:
        return side_by_side(record, plots)
    made: dict[str, str] = {}
    for name, write in _PAGES.items():
        text = write(record, plots)
        if text:
            made[name] = text
    return {"index": _index(record, plots, list(made)), **made}


def title(record: Record) -> str:
    """What the report is about: network and data, as plain text on one line."""
    if "analyses" in record:
        return series_title(record)
    about = record.get("provenance") or {}
    net, data = about.get("arch") or "Features", about.get("data")
    return short(net, 60) + (f" on {short(_base(data), 60)}" if data else "")


def _base(path: Any) -> str:
    """The last component of a path, from any system: whose folders it lies in is nobody's news."""
    return str(path).replace("\\", "/").rstrip("/").rpartition("/")[2] or str(path)


def _index(record: Record, plots: Plots, others: Sequence[str]) -> str:
    segments = record.get("segments") or []
    last = f"class-means-{len(segments)}"
    toc = "\n".join(["```{toctree}", ":hidden:", ":maxdepth: 1", "", *others, "```"])
    return join(
        f"# {plain(title(record))}",
        _lead(record),
        _verdict(record),
        "## At a glance",
        _glance(record),
        figure_block(plots, last),
        figure_block(plots, "straightness", caption=False),
        figure_block(plots, "collapse", caption=False),
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
    trust = record.get("trust") or {}
    said = [
        images,
        f"accuracy {share(record.get('accuracy'))}{_beside_chance(trust)}"
        if record.get("accuracy") is not None
        else "",
        _normalized(trust.get("normalization")),
        f"{len(record.get('layers') or [])} layers",
        f"{len(record.get('blocks') or [])} blocks",
        f"features: {plain(about['pool'])}" if about.get("pool") else "",
    ]
    return ", ".join(part for part in said if part) + "."


def _beside_chance(trust: Record) -> str:
    parts = [f"guessing {share(trust['chance'])}"] if trust.get("chance") is not None else []
    claimed = trust.get("claimed_accuracy")
    parts += [f"the file claims {share(claimed['value'])}"] if claimed else []
    return f" ({', '.join(parts)})" if parts else ""


def _normalized(used: Record | None) -> str:
    if not used:
        return ""
    source = {"asked": "as asked", "file": "as the file says"}.get(used["source"], "assumed")
    return f"normalization {plain(used['name'])}, {source}"


def _verdict(record: Record) -> str:
    """The record's verdict, a line a sentence."""
    sentences = [sentence(said["words"]) for said in record.get("verdict") or []]
    if not sentences:
        return ""
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
            with_interval(s.get("length_ratio"), interval(s, "length_ratio")),
            centred(s, "length_ratio"),
            fixed((s.get("centred") or {}).get("sqrt_moving_blocks"), 2),
            correlation(s),
            change(s, "nc1", figure),
            change(s, "ncc_accuracy", share),
        ]
        for i, s in enumerate(record.get("segments") or [])
    ]
    if not rows:
        return "This record has no segment of at least two layers in one feature space."
    header = (
        "Segment",
        "length ratio",
        "centred",
        "orthogonal",
        "correlation",
        "NC1",
        "nearest centre",
    )
    first = next((layer for layer in layers if layer.get("stage") is None), None)
    begun = (
        f" At {plain(first['name'])}, before any block: NC1 "
        f"{figure(first['collapse'].get('nc1'))}, nearest-centre accuracy "
        f"{share(first['collapse'].get('ncc_accuracy'))}."
        if first
        else ""
    )
    return table(
        header,
        rows,
        "Each run of layers in one feature space; 95 % intervals in square brackets. Centred: each "
        "layer's mean taken off. Orthogonal: the ratio that orthogonal steps of the same sizes "
        "would have. Correlation: the score end to end, 1 for an optimal map; in round brackets if "
        "it is not clearly above that of null maps. Nearest centre: accuracy of the nearest "
        "class mean." + begun,
    )


_JUDGED = ("NC1", "CDNV", "distance to ETF")
_MODELS = {
    "geodesic_model": (
        "Geodesic model",
        "Features at each layer are predicted by the straight line from the segment's first layer "
        "to its last: what a network on a geodesic would have. It is given both ends.",
    ),
    "mufm": (
        "MUFM",
        "The multilayer unconstrained feature model, fitted to the features that enter the last "
        "segment and to the labels; its two settings are those that predict the last layer best on "
        "held-out samples. Its shape is compared: every layer may be rotated.",
    ),
    "mufm_given": (
        "MUFM with the network's own classifier",
        "The same with the directions of the network's own classifier instead of MUFM's best "
        "one; layers are not rotated.",
    ),
    "ufm": (
        "Plain UFM",
        "Complete collapse: the classes of the last layer are the corners of the nearest simplex, "
        "without variability.",
    ),
}


def _models(record: Record, plots: Plots) -> str:
    parts = [_model(record, key) for key in _MODELS if record.get(key)]
    if not parts:
        return ""
    return join(
        "# Models",
        "What theory predicts for every layer, beside what was measured there. R² is 1 where the "
        "prediction is perfect, and 0 where it is as far off as the segment's first features, "
        "fitted to the layer in the same way (mean, scale, and a rotation for MUFM). Unexplained "
        "variance is a fraction of the layer's variance; W2, between the model's "
        "features and the network's, is over the root of that variance.",
        _beside(record),
        figure_block(plots, "models"),
        figure_block(plots, "collapse", caption=False),
        *parts,
    )


def _beside(record: Record) -> str:
    """A row a model: how far it goes, all layers together and at the last one."""
    models = [record.get(key) or {} for key in _MODELS]
    last = next((m["layers"][-1].get("name") for m in models if m.get("layers")), None)
    layers = [layer for layer in record.get("layers") or [] if layer.get("name") == last]
    seen = (layers[-1].get("collapse") if layers else None) or {}
    ends = (figure(seen.get("nc1")), figure(seen.get("cdnv")))
    rows = [["The network", DASH, DASH, DASH, *ends]]
    for key, (name, _) in _MODELS.items():
        model = record.get(key) or {}
        if not model.get("layers"):
            continue
        said = model["layers"][-1]
        metrics = said.get("collapse") or said
        rows.append(
            [
                name,
                fixed(model.get("held_out_r2"), 3),
                share(said.get("missed")),
                fixed(said.get("w2"), 3),
                _rounded(metrics.get("nc1")),
                _rounded(metrics.get("cdnv")),
            ]
        )
    header = (
        "Model",
        "R² held out",
        "unexplained variance of last layer",
        "W2 there",
        "NC1 there",
        "CDNV there",
    )
    return table(
        header,
        rows,
        "Held out: on half the samples, with classifier, times and scales from the other half; all "
        "layers of the last segment together. The geodesic model is given the last layer.",
    )


def _rounded(value: Any) -> str:
    """A model's metric; what is zero up to rounding is zero."""
    return "0" if 0 <= number(value) < ROUNDING else figure(value)


def _model(record: Record, key: str) -> str:
    name, words = _MODELS[key]
    model = record[key]
    measured = {la.get("name"): la.get("collapse") or {} for la in record.get("layers") or []}
    layers = [layer for layer in model.get("layers") or [] if isinstance(layer, Mapping)]
    rows = []
    for label, layer in zip(names_of(layers, "name"), layers, strict=True):
        said, seen = layer.get("collapse") or layer, measured.get(layer.get("name"), {})
        pairs = (
            f"{figure(seen.get(m))} / {_rounded(said.get(m))}" for m in ("nc1", "cdnv", "nc2_etf")
        )
        rows.append(
            [
                label,
                fixed(layer.get("time"), 2),
                *(fixed(layer.get(m), 3) for m in ("r2", "r2_line", "missed", "w2")),
                *pairs,
            ]
        )
    header = (
        "Layer",
        "time",
        "R²",
        "gain over the straight line",
        "unexplained variance",
        "W2",
        *_JUDGED,
    )
    skipped = model.get("skipped")
    fitted = flat({k: v for k, v in model.items() if k not in ("layers", "skipped")})
    return join(
        f"## {name}",
        words,
        f"Not fitted: {plain(skipped)}" if skipped else "",
        table(header, rows, f"{name}: measured / predicted.") if rows else "",
        key_values(fitted, f"{name}, as fitted.") if fitted else "",
    )


def _methods(record: Record, plots: Plots) -> str:
    return join(asset("methods.md"), _thresholds(record.get("thresholds") or {}))


def _thresholds(thresholds: Mapping[str, float]) -> str:
    """The numbers at which the words of the verdict change, as the record has them."""
    rows = [[plain(name.replace("_", " ")), figure(value)] for name, value in thresholds.items()]
    if not rows:
        return ""
    return join(
        "## Words",
        "The numbers at which the words of the verdict change; what each decides stands in the "
        "documentation of `wgeo.analysis.verdict`.",
        table(("Threshold", "value"), rows, "Thresholds of the verdict."),
    )


def _provenance(record: Record, plots: Plots) -> str:
    about = dict(record.get("provenance") or {})
    names = about.pop("class_names", None) or []
    about |= {key: record.get(key) for key in ("created", "device", "seed", "schema")}
    pairs = flat(about)
    if names:
        pairs.append(("classes", plain(", ".join(map(str, names)), 400)))
    versions = [(plain(k), plain(v)) for k, v in (record.get("versions") or {}).items()]
    return join(
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


_PAGES: dict[str, Callable[[Record, Plots], str]] = {
    "transport": transport,
    "straightness": straightness,
    "collapse": collapse,
    "models": _models,
    "methods": _methods,
    "provenance": _provenance,
}

"""Pages of a report: convert a record to Markdown, without computing anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..plots.composed import catalog
from ..plots.depth import ZERO_BELOW
from ..plots.style import number, short
from .assets import asset
from .first_screen import first_screen
from .measured import collapse, straightness, transport
from .parts import (
    Plots,
    Record,
    figure_block,
    flat,
    join,
    names_of,
)
from .series import series_title, side_by_side
from .text import (
    DASH,
    code,
    fixed,
    general,
    key_values,
    percent,
    plain,
    table,
)


def pages(record: Record) -> dict[str, str]:
    """Return the Markdown of every page by name; ``index`` has the table of contents."""
    plots = {plot.stem: plot for plot in catalog(record)}
    if "analyses" in record:
        return side_by_side(record, plots)
    texts: dict[str, str] = {}
    for name, write in _PAGES.items():
        text = write(record, plots)
        if text:
            texts[name] = text
    placed = "".join(texts.values())
    others = [figure_block(plots, stem) for stem in plots if f"figures/{stem}.*" not in placed]
    if others:
        texts["figures"] = join("# More figures", *others)
    return {"index": _index(record, plots, list(texts)), **texts}


def title(record: Record) -> str:
    """Return the title of the report, network and data, as one line of plain text."""
    if "analyses" in record:
        return series_title(record)
    about = record.get("provenance") or {}
    net, data = about.get("arch") or "Features", about.get("data")
    return short(net, 60) + (f" on {short(_base(data), 60)}" if data else "")


def _base(path: Any) -> str:
    """Return the last component of a path from any operating system, to hide the folders."""
    return str(path).replace("\\", "/").rstrip("/").rpartition("/")[2] or str(path)


def _index(record: Record, plots: Plots, others: Sequence[str]) -> str:
    segments = record.get("segments") or []
    last = f"class-means-{len(segments)}"
    toc = "\n".join(["```{toctree}", ":hidden:", ":maxdepth: 1", "", *others, "```"])
    return join(
        f"# {plain(title(record))}",
        first_screen(record),
        figure_block(plots, last),
        figure_block(plots, "straightness", caption=False),
        figure_block(plots, "collapse", caption=False),
        "Figures and tables are explained on [](straightness.md) and [](collapse.md); see "
        "[](methods.md) for the definitions."
        if {"straightness", "collapse"} <= set(others)
        else "",
        toc,
    )


_COMPARED = ("NC1", "CDNV", "distance to ETF")
_MODELS = {
    "geodesic_model": (
        "Geodesic model",
        "Features at each layer are predicted by the straight line from the segment's first layer "
        "to its last, as on a geodesic. The model uses both of these layers.",
    ),
    "mufm": (
        "MUFM",
        "The multilayer unconstrained feature model, fitted to the input features of the last "
        "segment and to the labels. Its two settings are those that best predict the last layer on "
        "held-out samples. Every layer is compared up to a rotation.",
    ),
    "mufm_given": (
        "MUFM with the network's own classifier",
        "The same model, with the directions of the network's own classifier instead of MUFM's "
        "optimal classifier, and compared without a rotation.",
    ),
    "ufm": (
        "Plain UFM",
        "Complete collapse: all samples of a class coincide, and the classes are the vertices of "
        "the simplex nearest to the last layer's class means.",
    ),
}


def _models(record: Record, plots: Plots) -> str:
    parts = [_model(record, key) for key in _MODELS if record.get(key)]
    if not parts:
        return ""
    return join(
        "# Models",
        "Theoretical predictions for every layer, compared with the measurements. R² is 1 if the "
        "prediction is perfect, and 0 if its error equals that of the segment's first features, "
        "fitted to the layer in the same way (mean, scale, and for MUFM a rotation). The "
        "unexplained variance is the fraction of the layer's variance that remains; W2, between "
        "the model's features and the network's, is divided by the root of the layer's variance.",
        _model_summary(record),
        figure_block(plots, "models"),
        figure_block(plots, "collapse", caption=False),
        *parts,
    )


def _model_summary(record: Record) -> str:
    """Tabulate the fit of each model, over all layers and at the last layer."""
    models = [record.get(key) or {} for key in _MODELS]
    last = next((m["layers"][-1].get("name") for m in models if m.get("layers")), None)
    layers = [layer for layer in record.get("layers") or [] if layer.get("name") == last]
    measured = (layers[-1].get("collapse") if layers else None) or {}
    ends = (general(measured.get("nc1")), general(measured.get("cdnv")))
    rows = [["The network", DASH, DASH, DASH, *ends]]
    for key, (name, _) in _MODELS.items():
        model = record.get(key) or {}
        if not model.get("layers"):
            continue
        layer = model["layers"][-1]
        metrics = layer.get("collapse") or layer
        rows.append(
            [
                name,
                fixed(model.get("held_out_r2"), 3),
                percent(layer.get("missed")),
                fixed(layer.get("w2"), 3),
                _rounded(metrics.get("nc1")),
                _rounded(metrics.get("cdnv")),
            ]
        )
    header = (
        *("Model", "R² held out", "unexplained, last layer"),
        *("W2, last layer", "NC1, last layer", "CDNV, last layer"),
    )
    return table(
        header,
        rows,
        "R² held out: on half of the samples, with classifier, times and scales fitted to the "
        "other half, over all layers of the last segment together. The geodesic model is given the "
        "last layer.",
    )


def _rounded(value: Any) -> str:
    """Format a model's metric; a value that is zero up to rounding is shown as 0."""
    return "0" if 0 <= number(value) < ZERO_BELOW else general(value)


def _model(record: Record, key: str) -> str:
    name, description = _MODELS[key]
    model = record[key]
    measured = {la.get("name"): la.get("collapse") or {} for la in record.get("layers") or []}
    layers = [layer for layer in model.get("layers") or [] if isinstance(layer, Mapping)]
    rows = []
    for label, layer in zip(names_of(layers, "name"), layers, strict=True):
        predicted, actual = layer.get("collapse") or layer, measured.get(layer.get("name"), {})
        pairs = (
            f"{general(actual.get(m))} / {_rounded(predicted.get(m))}"
            for m in ("nc1", "cdnv", "nc2_etf")
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
        *("Layer", "time", "R²", "gain over the straight line", "unexplained", "W2"),
        *_COMPARED,
    )
    skipped = model.get("skipped")
    settings = flat({k: v for k, v in model.items() if k not in ("layers", "skipped")})
    return join(
        f"## {name}",
        description,
        f"Not fitted: {plain(skipped)}" if skipped else "",
        table(header, rows, f"{name}: measured / predicted.") if rows else "",
        key_values(settings, f"{name}, as fitted.") if settings else "",
    )


def _methods(record: Record, plots: Plots) -> str:
    return join(asset("methods.md"), _thresholds(record.get("thresholds") or {}))


def _thresholds(thresholds: Mapping[str, float]) -> str:
    """Tabulate the thresholds of the verdict, as recorded."""
    rows = [[plain(name.replace("_", " ")), general(value)] for name, value in thresholds.items()]
    if not rows:
        return ""
    return join(
        "## Thresholds",
        "The thresholds at which the wording of the verdict changes. They are explained in the "
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
        "Everything needed to reproduce these numbers. The numbers themselves are in "
        "{download}`analysis.json <analysis.json>`.",
        "## Command",
        code(str(record.get("command") or "")) if record.get("command") else "Not recorded.",
        "## Input",
        key_values(pairs, "Network, data and settings.") if pairs else "Not recorded.",
        "## Versions",
        key_values(versions, "Software that may affect the numbers.")
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

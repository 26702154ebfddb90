"""Pages of a report: convert a record to Markdown, without computing anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..plots.depth import ZERO_BELOW
from ..plots.files import catalog
from ..plots.predictions import MODELS
from ..plots.sources import as_record, as_series, is_series
from ..plots.style import number, short
from ..storage.record import Collapse, Record
from .assets import asset
from .first_screen import first_screen
from .measured import collapse, straightness, transport
from .parts import (
    Plots,
    base_name,
    figure_block,
    flat,
    join,
    last_means,
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


def pages(source: Any) -> dict[str, str]:
    """Return the Markdown of every page by name; ``index`` has the table of contents."""
    if is_series(source):
        series = as_series(source)
        return side_by_side(series, {plot.stem: plot for plot in catalog(series)})
    record = as_record(source)
    plots = {plot.stem: plot for plot in catalog(record)}
    texts = {name: text for name, write in _PAGES.items() if (text := write(record, plots))}
    summary = figure_block(plots, last_means(record))
    placed = "".join([summary, *texts.values()])
    others = [figure_block(plots, stem) for stem in plots if f"figures/{stem}.*" not in placed]
    if others:
        texts["figures"] = join("# More figures", *others)
    return {"index": _index(record, summary, list(texts)), **texts}


def title(source: Any) -> str:
    """Return the title of the report, network and data, as one line of plain text."""
    if is_series(source):
        return series_title(as_series(source))
    about = as_record(source).provenance
    net, data = about.arch or "Features", about.data
    return short(net, 60) + (f" on {short(base_name(data), 60)}" if data else "")


def _index(record: Record, figure: str, others: Sequence[str]) -> str:
    toc = "\n".join(["```{toctree}", ":hidden:", ":maxdepth: 1", "", *others, "```"])
    linked = ", ".join(f"[]({name}.md)" for name in others)
    return join(
        f"# {plain(title(record))}",
        first_screen(record),
        figure,
        f"The next pages have the other figures and tables: {linked}.",
        toc,
    )


_DESCRIPTIONS = {
    "geodesic_model": (
        "Features at each layer are predicted by the straight line from the segment's first layer "
        "to its last, as on a geodesic. The model uses both of these layers."
    ),
    "mufm": (
        "The multilayer unconstrained feature model, fitted to the input features of the last "
        "segment and to the labels. Its weight decay and the coefficient of its transport term "
        "are those that best predict the last layer on held-out samples. Every layer is compared "
        "up to a rotation."
    ),
    "mufm_given": (
        "The same model, with the directions of the network's own classifier instead of MUFM's "
        "optimal classifier, and compared without a rotation."
    ),
    "ufm": (
        "Complete collapse: all samples of a class coincide, and the classes are the vertices of "
        "the simplex nearest to the last layer's class means."
    ),
}


def _models(record: Record, plots: Plots) -> str:
    parts = [_model(record, key) for key in _DESCRIPTIONS if record.model(key)]
    if not parts:
        return ""
    return join(
        "# Models",
        "Theoretical predictions for every layer, compared with the measurements. R² is 1 if the "
        "prediction is perfect. It is 0 if the segment's first features, fitted to the layer in "
        "the same way (mean, scale, and for MUFM a rotation), have the same error. The unexplained "
        "variance is the error divided by the layer's variance. W2 is the distance between the "
        "model's features and the network's, divided by the square root of the layer's variance.",
        _model_summary(record),
        figure_block(plots, "models"),
        "[](collapse.md) shows the models' collapse metrics beside the network's."
        if record.layers
        else "",
        *parts,
    )


def _model_summary(record: Record) -> str:
    """Tabulate each model's R² over all layers, and its errors at the last layer."""
    models = [record.model(key) for key in _DESCRIPTIONS]
    last = next((model.layers[-1].name for model in models if model.layers), None)
    layers = [layer.collapse for layer in record.layers if layer.name == last]
    measured = layers[-1] if layers else Collapse()
    ends = (general(measured.measure("nc1")), general(measured.measure("cdnv")))
    rows = [["The network", DASH, DASH, DASH, *ends]]
    for key in _DESCRIPTIONS:
        model = record.model(key)
        if not model.layers:
            continue
        layer = model.layers[-1]
        rows.append(
            [
                _name(key),
                fixed(model.held_out_r2, 3),
                percent(layer.missed),
                fixed(layer.w2, 3),
                _predicted(layer.collapse.measure("nc1")),
                _predicted(layer.collapse.measure("cdnv")),
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


def _predicted(value: Any) -> str:
    """Format a model's metric; a value that is zero up to rounding is shown as 0."""
    return "0" if 0 <= number(value) < ZERO_BELOW else general(value)


def _name(key: str) -> str:
    name = MODELS[key][0]
    return name[0].upper() + name[1:]


def _model(record: Record, key: str) -> str:
    name, model = _name(key), record.model(key)
    measured = {layer.name: layer.collapse for layer in record.layers}
    rows = []
    labels = names_of(layer.name for layer in model.layers)
    for label, layer in zip(labels, model.layers, strict=True):
        predicted, actual = layer.collapse, measured.get(layer.name, Collapse())
        pairs = (
            f"{general(actual.measure(m))} / {_predicted(predicted.measure(m))}"
            for m in ("nc1", "cdnv", "nc2_etf")
        )
        rows.append(
            [
                label,
                fixed(layer.time, 2),
                *(fixed(layer.measure(m), 3) for m in ("r2", "r2_line", "missed", "w2")),
                *pairs,
            ]
        )
    header = (
        *("Layer", "time", "R²", "gain over the straight line", "unexplained", "W2"),
        *("NC1", "CDNV", "distance to ETF"),
    )
    settings = flat({k: v for k, v in model.json.items() if k not in ("layers", "skipped")})
    return join(
        f"## {name}",
        _DESCRIPTIONS[key],
        f"Not fitted: {plain(model.skipped)}" if model.skipped else "",
        table(header, rows, f"{name}: measured / predicted.") if rows else "",
        key_values(settings, f"{name}, as fitted.") if settings else "",
    )


def _thresholds(thresholds: Mapping[str, float | None]) -> str:
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
    about = {key: v for key, v in record.provenance.json.items() if key != "class_names"}
    pairs = flat({**about, **record.only("created", "device", "seed", "schema")})
    if names := record.provenance.class_names:
        pairs.append(("classes", plain(", ".join(names), 400)))
    versions = [(plain(k), plain(v)) for k, v in record.versions.items()]
    return join(
        "# Provenance",
        "Everything needed to reproduce these numbers. The numbers themselves are in "
        "{download}`analysis.json <analysis.json>`.",
        "## Command",
        code(record.command) if record.command else "Not recorded.",
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
    "methods": lambda record, _: join(asset("methods.md"), _thresholds(record.thresholds)),
    "provenance": _provenance,
}

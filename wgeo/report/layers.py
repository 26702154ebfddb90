"""The pages that describe layers one by one: collapse, and the predictions of models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..plots.depth import METRICS, ZERO_BELOW
from ..plots.predictions import MODELS
from ..plots.style import number
from ..storage.record import PENULTIMATE, Collapse, Layer, Record
from ..text import stage_number
from .markdown import (
    DASH,
    Plots,
    figure_block,
    fixed,
    flat,
    general,
    join,
    key_values,
    names_of,
    percent,
    plain,
    table,
    value_with_interval,
    with_interval,
)

_LAYER_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "nc1": ("NC1", general),
    "cdnv": ("CDNV", general),
    "nc2_equinorm": ("norms", general),
    "nc2_equiangle": ("angles", general),
    "nc2_etf": ("to ETF", general),
    "ncc_accuracy": ("nearest mean", percent),
    "effective_rank": ("eff. rank", general),
}
_CORRECTED: dict[str, tuple[str, Callable[[Any], str]]] = {
    "nc1_corrected": ("NC1 corrected", general),
    "cdnv_corrected": ("CDNV corrected", general),
    "ncc_accuracy_corrected": ("nearest mean corrected", percent),
}


def collapse(record: Record, plots: Plots) -> str:
    layers = record.layers
    if not layers:
        return ""
    names = names_of(layer.name for layer in layers)
    metrics = [layer.collapse for layer in layers]
    columns, corrected = _LAYER_COLUMNS, ""
    if any(m.measure(key) is not None for m in metrics for key in _CORRECTED):
        columns = {**_LAYER_COLUMNS, **_CORRECTED}
        corrected = " Corrected: estimates for few samples per class."
    rows = [
        [name, general(layer.width), *(show(m.measure(k)) for k, (_, show) in columns.items())]
        for name, layer, m in zip(names, layers, metrics, strict=True)
    ]
    header = ("Layer", "width", *(name for name, _ in columns.values()))
    return join(
        "# Collapse",
        "The degree of neural collapse at each layer: of samples to their class mean (NC1, CDNV), "
        "of class means to a simplex equiangular tight frame (NC2: equal norms, equal angles, "
        "distance to the frame), and of decisions to the nearest class mean. All metrics "
        "except the accuracy and the rank are 0 at complete collapse. [Definitions](methods.md).",
        figure_block(plots, "collapse"),
        _PENULTIMATE if layers[-1].name == PENULTIMATE else "",
        _progress(record),
        figure_block(plots, "class-variability"),
        _separation_law(record, plots),
        table(header, rows, f"Collapse metrics of every layer.{corrected}"),
        _last_layer(metrics[-1]),
        _undefined(layers),
    )


_PENULTIMATE = (
    f"The layer `{PENULTIMATE}` is the input of the classifier. It differs from the output of the "
    "last block if, for example, a final normalization follows that block, or the classifier reads "
    "only one token. No block leads to it, so transport, straightness, models and the trend over "
    "depth end at the last block."
)


def _progress(record: Record) -> str:
    rows = []
    for metric, p in record.progress.items():
        monotone = {True: "yes", False: "no", None: DASH}[p.monotone]
        tau = with_interval(p.kendall_tau, p.interval)
        reached = plain(p.reached, 40) if p.reached else DASH
        name = plain(METRICS.get(metric, metric))
        rows.append([name, monotone, tau, general(p.violations), reached])
    header = ("Metric", "never increases", "Kendall's τ", "increases", "90 % of the decrease at")
    return table(header, rows, "Progressive collapse: does each metric decrease with depth?")


_LAST = {
    "nc3": "NC3, classifier to class means (Zhu et al.)",
    "nc3_papyan": "NC3, classifier to class means (Papyan et al.)",
    "ncc_mismatch": "NC4, disagreement with the nearest class mean",
    "nc5": "NC5, class means to out-of-distribution mean",
}


def _last_layer(metrics: Collapse) -> str:
    values = ((name, metrics.measure(key)) for key, name in _LAST.items())
    rows = [(plain(name), general(value)) for name, value in values if value is not None]
    return key_values(rows, "At the last layer.")


def _undefined(layers: Sequence[Layer]) -> str:
    """List every undefined metric and the reason once, with the layers."""
    reasons: dict[str, list[str]] = {}
    for layer in layers:
        for metric, reason in layer.collapse.undefined.items():
            names = reasons.setdefault(f"{plain(metric)}: {plain(reason)}", [])
            names.append(plain(layer.name, 40))
    lines = [
        f"- {reason} ({', '.join(names[:3])}{', …' * (len(names) > 3)})"
        for reason, names in reasons.items()
    ]
    return join("Undefined values:", "\n".join(lines)) if lines else ""


def _separation_law(record: Record, plots: Plots) -> str:
    keys = ("rate", "correlation", "curvature", "compression_rate", "discrimination_slope")
    rows = [
        [
            "all stages" if s.stage is None else f"stage {stage_number(s.stage)}",
            f"{plain(s.layers[0], 40)} to {plain(s.layers[-1], 40)}",
            *(value_with_interval(s, key, 3) for key in keys),
        ]
        for s in record.separation_law.segments
    ]
    if not rows:
        return ""
    header = (
        *("Stage", "layers", "factor per layer", "correlation with depth", "curvature"),
        *("compression per layer", "slope of discrimination"),
    )
    return join(
        "## Do the classes separate at a constant rate?",
        "The law of data separation says that D = tr Σw Σb⁺, NC1 times the number of classes, "
        "falls by the same factor at every layer. The correlation of ln D with depth is then −1, "
        "and its curvature is 0. A correlation near −1 is weak evidence by itself. "
        "[Definitions](methods.md).",
        figure_block(plots, "separation-law"),
        table(header, rows, "Fit of ln D over the layers of each row; 95 % intervals."),
    )


_DESCRIPTIONS = {  # of the models, in the order of the page
    "geodesic_model": (
        "Features at each layer are predicted by the straight line from the segment's first layer "
        "to its last, as on a geodesic. The model is given both of these layers."
    ),
    "mufm": (
        "The multilayer unconstrained feature model, fitted to the input features of the last "
        "segment and to the labels. Its weight decay and the coefficient of its transport term "
        "are those with which it best predicts the last layer of held-out samples. Every layer is "
        "compared up to a rotation."
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


def models(record: Record, plots: Plots) -> str:
    parts = [_model(record, key) for key in _DESCRIPTIONS if record.model(key)]
    if not parts:
        return ""
    return join(
        "# Models",
        "Theoretical predictions for every layer, compared with the measurements. R² is 1 if the "
        "prediction is perfect. It is 0 if the segment's first features, fitted to the layer in "
        "the same way (mean, scale, and for MUFM a rotation), predict it equally well. The "
        "unexplained variance is the error divided by the layer's variance. W2 is the distance "
        "between the model's features and the network's, divided by the square root of the layer's "
        "variance.",
        _model_summary(record),
        figure_block(plots, "models"),
        "[](collapse.md) shows the models' collapse metrics beside the network's."
        if record.layers
        else "",
        *parts,
    )


def _model_summary(record: Record) -> str:
    """Tabulate each model's R² over all layers, and its errors at the last layer."""
    fitted = {key: model for key in _DESCRIPTIONS if (model := record.model(key)).layers}
    last = next((model.layers[-1].name for model in fitted.values()), None)
    layers = [layer.collapse for layer in record.layers if layer.name == last]
    measured = layers[-1] if layers else Collapse()
    ends = (general(measured.measure("nc1")), general(measured.measure("cdnv")))
    rows = [["The network", DASH, DASH, DASH, *ends]]
    for key, model in fitted.items():
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
        *("Model", "R² held out"),
        *(f"{error}, last layer" for error in ("unexplained", "W2", "NC1", "CDNV")),
    )
    return table(
        header,
        rows,
        "R² held out: over all layers of the last segment together, on half of the samples, with "
        "classifier, times and scales fitted to the other half. The geodesic model is given the "
        "last layer.",
    )


def _predicted(value: Any) -> str:
    """Format a model's metric, as 0 if it is zero up to rounding."""
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
        actual = measured.get(layer.name, Collapse())
        errors = [fixed(layer.measure(m), 3) for m in ("r2", "r2_line", "missed", "w2")]
        pairs = [
            f"{general(actual.measure(m))} / {_predicted(layer.collapse.measure(m))}"
            for m in ("nc1", "cdnv", "nc2_etf")
        ]
        rows.append([label, fixed(layer.time, 2), *errors, *pairs])
    header = (
        *("Layer", "time", "R²", "gain over the straight line", "unexplained", "W2"),
        *("NC1", "CDNV", "distance to ETF"),
    )
    settings = flat({k: v for k, v in model.json.items() if k not in ("layers", "skipped")})
    return join(
        f"## {name}",
        _DESCRIPTIONS[key],
        f"Not fitted: {plain(model.skipped)}" if model.skipped else "",
        table(header, rows, f"{name}: measured / predicted."),
        key_values(settings, f"{name}, as fitted."),
    )

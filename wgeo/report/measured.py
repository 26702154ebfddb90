"""Pages of a report with measurements: transport, straightness, collapse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..plots.depth import METRICS
from ..plots.paths import RATIOS
from ..plots.style import segment_name, short_names
from ..storage.record import PENULTIMATE, Collapse, Comparison, Layer, Record, Reference, Segment
from ..thresholds import LOW_RESOLUTION
from .depth_laws import alignment, separation_law
from .parts import (
    Plots,
    correlation,
    figure_block,
    highest_null,
    join,
    last_means,
    names_of,
    score,
    value_with_interval,
)
from .scrubber import scrubber
from .text import (
    DASH,
    fixed,
    general,
    key_values,
    percent,
    plain,
    sentence,
    table,
    with_interval,
)


def transport(record: Record, plots: Plots) -> str:
    blocks = record.blocks
    if not blocks:
        return ""
    certified = sum(block.status == "certified" for block in blocks)
    rows = [
        [
            name,
            general(b.distance, 5),
            f"[{general(b.lower, 5)}, {general(b.upper, 5)}]",
            general(b.paired, 5),
            correlation(b),
            highest_null(b),
            score(b),
            fixed(b.ot_score_centred, 4),
            percent(b.shift_share),
            general(b.resolution),
            plain(b.status or DASH),
        ]
        for name, b in zip(names_of(block.target for block in blocks), blocks, strict=True)
    ]
    header = (
        *("Block", "W2", "bounds", "own pairing", "correlation score", "highest null"),
        *("OT score", "centered", "common shift", "resolution", "status"),
    )
    return join(
        "# Transport",
        "Each block maps the features of one layer to those of the next. W2 is the smallest root "
        "mean squared distance over all couplings of the two distributions; the network's own "
        "pairing maps every sample to its own features at the next layer. If a block changes the "
        "feature space, its input is first mapped by the block's own shortcut.",
        f"{certified} of {len(blocks)} distances are certified: their lower and upper bounds, "
        "proved by feasible dual potentials and a feasible coupling, agree to within the solver's "
        "tolerance. Scores in parentheses are not evidence. A correlation score in parentheses is "
        "not clearly above those of null maps, which assign the same displacements to the wrong "
        "samples or rotate them. An OT score is in parentheses if the resolution is below "
        f"{LOW_RESOLUTION} or undefined.",
        figure_block(plots, "distances"),
        table(header, rows, "Transport of every block; distances in units of the features."),
        _gradient_maps(record, plots),
        "## Are there enough samples?" if "sample-sizes" in plots else "",
        figure_block(plots, "sample-sizes"),
    )


def _gradient_maps(record: Record, plots: Plots) -> str:
    if "gradient-maps" not in plots:
        return ""
    tests = [
        (name, row.brenier)
        for name, row in (
            *zip(names_of(block.target for block in record.blocks), record.blocks, strict=True),
            *((plain(segment_name(s.layers, i)), s) for i, s in enumerate(record.segments)),
        )
        if row.brenier
    ]
    keys = ("asymmetry", "displacement_asymmetry", "min_eigenvalue")
    rows = [
        [
            name,
            *(value_with_interval(test, key, 3) for key in keys),
            percent(test.negative_share),
        ]
        for name, test in tests
    ]
    header = (
        *("Map", "asymmetry", "asymmetry of the displacement"),
        *("smallest eigenvalue", "points where negative"),
    )
    return join(
        "## Is it an optimal map?",
        "An OT score of 1 means that no other pairing of these samples has a lower cost. A map "
        "that is optimal for every distribution has a symmetric Jacobian without negative "
        "eigenvalues. This can be tested at each point, whatever the number of samples. "
        "[Method](methods.md).",
        figure_block(plots, "gradient-maps"),
        table(header, rows, "Brenier test of every block and segment; 95 % intervals over points."),
    )


def straightness(record: Record, plots: Plots) -> str:
    segments = record.segments
    if not segments:
        return ""
    runs = sorted({k for segment in segments for k in segment.length_over_runs})
    rows = [
        [name, *(show(s) for s in segments)]
        for name, show in (
            ("W2 end to end", lambda s: general(s.distance, 4)),
            ("sum of the blocks' W2", lambda s: general(s.length, 4)),
            *((label, _value(key)) for key, label in RATIOS.items()),
            *((f"{label}, centered", _centered(key)) for key, label in RATIOS.items()),
            ("moving blocks B", lambda s: fixed(s.moving_blocks, 2)),
            ("length ratio of orthogonal steps √B", lambda s: fixed(s.sqrt_moving_blocks, 2)),
            *((f"length ratio over {k} runs of blocks", _over_runs(k)) for k in runs),
            ("correlation score", correlation),
            ("highest null", highest_null),
            ("spread of the last layer / spread of the first", lambda s: general(s.spread_ratio)),
            ("common shift", lambda s: percent(s.shift_share)),
            ("OT score", score),
            ("OT score, centered", lambda s: fixed(s.ot_score_centred, 4)),
            ("resolution", lambda s: general(s.resolution)),
            ("mean turning angle (degrees)", lambda s: fixed(s.turning_angle, 0)),
            ("largest interpolation gap", lambda s: fixed(_largest_gap(s))),
        )
    ]
    header = ("", *(plain(segment_name(s.layers, i)) for i, s in enumerate(segments)))
    last = last_means(record)
    means = [stem for stem in plots if stem.startswith("class-means-") and stem != last]
    moving = scrubber(record)
    return join(
        "# Straightness",
        "On a geodesic of Wasserstein space with constant speed, every ratio is 1. The length and "
        "action ratios compare distributions; the line-shape measures follow each sample's own "
        "path. [Definitions](methods.md).",
        figure_block(plots, "straightness"),
        table(
            header,
            rows,
            "Straightness of every segment; 95 % intervals in brackets. Centered: with each "
            "layer's mean subtracted. A correlation score in parentheses is not clearly above "
            "those of null maps.",
        ),
        *_pairs(segments, plots),
        alignment(record, plots),
        _reference(record),
        _embedded(record),
        "## Paths of the classes" if moving or means or last in plots else "",
        moving,
        "The paths in the last stage are on the first page." if last in plots else "",
        *(figure_block(plots, stem) for stem in means),
    )


def _over_runs(k: int) -> Callable[[Segment], str]:
    return lambda segment: fixed(segment.length_over_runs.get(k), 3)


def _pairs(segments: Sequence[Segment], plots: Plots) -> list[str]:
    parts = []
    for i, segment in enumerate(segments):
        pairs = segment.pairs
        if not pairs.corr_score:
            continue
        names = [plain(name) for name in short_names(pairs.layers, 24)]
        rows = [
            [name, *(fixed(score, 3) if k > j else DASH for k, score in enumerate(scores))]
            for j, (name, scores) in enumerate(zip(names, pairs.corr_score, strict=True))
        ]
        caption = (
            f"{plain(segment_name(segment.layers, i))}: correlation score of the map from the "
            "row's layer to the column's layer; 1 for an optimal map."
        )
        parts.append(table(("from", *names), rows[:-1], caption))
    title = "## Between which layers is the map optimal?"
    figures = [figure_block(plots, stem) for stem in ("correlation-pairs", "distance-pairs")]
    return [title, figures[0], *parts, figures[1]] if parts else []


def _reference(record: Record) -> str:
    reference = record.reference
    if reference.skipped:
        return f"Not compared with a reference: {plain(reference.skipped)}"
    kept = reference.kept
    body = _fresh_table(reference) or _tests_table(reference.tests)
    if not body:
        return ""
    return join(
        "## Straighter than a reference?",
        *(sentence(s.words) for s in record.verdict if s.claim == "reference"),
        f"Parameters that kept their trained values: {plain(', '.join(kept[:5]), 200)}."
        if kept
        else "",
        body,
    )


def _fresh_table(reference: Reference) -> str:
    """Compare the network with randomly initialized networks of its architecture."""
    rows = [
        [
            plain(segment_name(row.layers, i)),
            fixed(row.value),
            f"{fixed(row.median)} [{fixed(row.low)}, {fixed(row.high)}]",
            general(row.as_straight),
            general(row.as_bent),
            general(row.rank_p, 2),
            general(row.adjusted_p, 2),
            plain(row.direction or DASH),
        ]
        for i, row in enumerate(reference.segments)
    ]
    if not rows:
        return ""
    header = (
        *("Segment", "this network", "random: median [range]", "as straight", "as bent"),
        *("rank p", "adjusted p", "direction"),
    )
    count = len(reference.networks)
    return table(
        header,
        rows,
        f"Line-shape ratio of the centered paths compared with those of {count} randomly "
        f"initialized networks, on {general(reference.images)} images; 1 is straight. As "
        "straight, as bent: the number of these networks whose ratio is at most, or at least, that "
        "of this network. Adjusted: for multiple segments.",
    )


def _tests_table(tests: Sequence[Comparison]) -> str:
    """Compare the network with one other network, over images."""
    if not tests:
        return ""
    rows = [
        [
            plain(segment_name(test.layers, i)),
            fixed(test.value),
            fixed(test.reference),
            with_interval(test.difference, test.interval, 3),
            fixed(test.effect_size, 2),
            general(test.p_value, 2),
        ]
        for i, test in enumerate(tests)
    ]
    header = ("Segment", "network", "reference", "difference", "effect size d", "one-sided p")
    return table(
        header,
        rows,
        "Line-shape ratio of the samples' centered paths; 1 is straight. The p-value is over "
        "images: it compares these two networks, not the ways in which they were trained.",
    )


def _embedded(record: Record) -> str:
    embedded = record.embedded
    segments = embedded.segments
    if not segments:
        return ""
    names = [plain(segment_name(s.layers, i)) for i, s in enumerate(segments)]
    rows = [
        [label, *(value_with_interval(s, key) for s in segments)] for key, label in RATIOS.items()
    ]
    rows.append(["OT score", *(score(s) for s in segments)])
    return join(
        "## The whole network in one space",
        f"Unlike in the network itself, all layers are embedded in one space "
        f"({plain(embedded.space)}).",
        *(sentence(s.words) for s in embedded.verdict),
        table(("", *names), rows, "Embedded."),
    )


def _value(key: str) -> Callable[[Segment], str]:
    return lambda segment: value_with_interval(segment, key)


def _centered(key: str) -> Callable[[Segment], str]:
    return lambda segment: value_with_interval(segment.centred, key)


def _largest_gap(segment: Segment) -> float | None:
    gaps = [gap for gap in segment.interpolation_gap if gap is not None]
    return max(gaps, default=None)


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
    has_corrected = any(m.measure(key) is not None for m in metrics for key in _CORRECTED)
    columns = {**_LAYER_COLUMNS, **(_CORRECTED if has_corrected else {})}
    rows = [
        [
            name,
            general(layer.width),
            *(show(m.measure(k)) for k, (_, show) in columns.items()),
        ]
        for name, layer, m in zip(names, layers, metrics, strict=True)
    ]
    header = ("Layer", "width", *(name for name, _ in columns.values()))
    corrected = " Corrected: estimates for few samples per class." if has_corrected else ""
    return join(
        "# Collapse",
        "The degree of neural collapse at each layer: of samples to their class mean (NC1, CDNV), "
        "of class means to a simplex equiangular tight frame (NC2: equal norms, equal angles, "
        "distance to the frame), and of decisions to the nearest class mean. All metrics "
        "except the accuracy and the rank are 0 at complete collapse. [Definitions](methods.md).",
        figure_block(plots, "collapse"),
        _penultimate(layers[-1]),
        _progress(record),
        figure_block(plots, "class-variability"),
        separation_law(record, plots),
        table(header, rows, f"Collapse metrics of every layer.{corrected}"),
        _last_layer(metrics[-1]),
        _undefined(layers),
    )


def _penultimate(last: Layer) -> str:
    if last.name != PENULTIMATE:
        return ""
    return (
        f"The layer `{PENULTIMATE}` is the input of the classifier. It differs from the output of "
        "the last block if, for example, a final normalization follows that block, or the "
        "classifier reads only one token. No block leads to it, so transport, straightness, models "
        "and the trend over depth end at the last block."
    )


def _progress(record: Record) -> str:
    rows = []
    for metric, p in record.progress.items():
        monotone = {True: "yes", False: "no", None: DASH}[p.monotone]
        tau = with_interval(p.kendall_tau, p.interval)
        reached = plain(p.reached, 40) if p.reached else DASH
        increases = general(p.violations)
        rows.append([plain(METRICS.get(metric, metric)), monotone, tau, increases, reached])
    if not rows:
        return ""
    header = (
        *("Metric", "never increases", "Kendall's τ"),
        *("increases", "90 % of the decrease at"),
    )
    return table(header, rows, "Progressive collapse: does each metric decrease with depth?")


_LAST: dict[str, str] = {
    "nc3": "NC3, classifier to class means (Zhu et al.)",
    "nc3_papyan": "NC3, classifier to class means (Papyan et al.)",
    "ncc_mismatch": "NC4, disagreement with the nearest class mean",
    "nc5": "NC5, class means to out-of-distribution mean",
}


def _last_layer(metrics: Collapse) -> str:
    values = ((name, metrics.measure(key)) for key, name in _LAST.items())
    rows = [(plain(name), general(value)) for name, value in values if value is not None]
    return key_values(rows, "At the last layer.") if rows else ""


def _undefined(layers: Sequence[Layer]) -> str:
    """List every reason for undefined values once, with its layers."""
    reasons: dict[str, list[str]] = {}
    for layer in layers:
        for metric, reason in layer.collapse.undefined.items():
            reasons.setdefault(f"{plain(metric)}: {plain(reason)}", []).append(
                plain(layer.name, 40)
            )
    lines = [
        f"- {reason} ({', '.join(names[:3])}{', …' * (len(names) > 3)})"
        for reason, names in reasons.items()
    ]
    return join("Undefined values:", "\n".join(lines)) if lines else ""

"""The pages of what was measured: transport, straightness, collapse."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..plots import METRICS, RATIOS
from ..plots.style import segment_name
from .parts import Plots, Record, figure_block, interval, join, names_of, score
from .scrubber import scrubber
from .text import DASH, figure, fixed, key_values, plain, share, table, with_interval


def transport(record: Record, plots: Plots) -> str:
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
            score(b),
            figure(b.get("resolution")),
            plain(b.get("status") or DASH),
        ]
        for name, b in zip(names_of(blocks, "target"), blocks, strict=True)
    ]
    header = ("Block", "W2", "contained in", "own pairing", "OT score", "resolution", "status")
    return join(
        "# Transport",
        "Each block maps the features of one layer to those of the next. W2 is the least root mean "
        "squared distance by which any pairing carries the one distribution to the other; the "
        "network's own pairing moves every sample to itself one layer on. Where a block changes "
        "the feature space, its input is carried over by the block's own shortcut.",
        f"{certified} of {len(blocks)} distances are certified: their interval, proved by a "
        "feasible coupling above and feasible dual potentials below, is closed to within the "
        "solver's tolerance. Scores in brackets have a resolution below 1/2: the samples move so "
        "little against their spacing that any map would score 1.",
        figure_block(plots, "distances"),
        table(header, rows, "Transport of every block; distances in units of the features."),
        _gradient_maps(record, plots),
        "## Would more samples say more?" if "sample-sizes" in plots else "",
        figure_block(plots, "sample-sizes"),
    )


def _gradient_maps(record: Record, plots: Plots) -> str:
    if "gradient-maps" not in plots:
        return ""
    tested = [
        (name, row["brenier"])
        for name, row in (
            *zip(names_of(record["blocks"], "target"), record["blocks"], strict=True),
            *((plain(segment_name(s, i)), s) for i, s in enumerate(record["segments"])),
        )
        if row.get("brenier")
    ]
    rows = [
        [
            name,
            *(
                with_interval(found.get(key), (found.get("intervals") or {}).get(key), 3)
                for key in ("asymmetry", "displacement_asymmetry", "min_eigenvalue")
            ),
            share(found.get("negative_share")),
        ]
        for name, found in tested
    ]
    header = ("Map", "asymmetry", "of the displacement", "smallest eigenvalue", "negative at")
    return join(
        "## Is it an optimal map?",
        "An OT score of 1 says that no other pairing of these samples is shorter. Whether the map "
        "is optimal for every distribution, its Jacobian tells at each point, however many samples "
        "there are: it is symmetric and has no negative eigenvalue. [How](methods.md).",
        figure_block(plots, "gradient-maps"),
        table(header, rows, "Brenier test of every block and segment; 95 % intervals over points."),
    )


def straightness(record: Record, plots: Plots) -> str:
    segments = record.get("segments") or []
    if not segments:
        return ""
    rows = [
        [name, *(show(s) for s in segments)]
        for name, show in (
            ("W2 end to end", lambda s: figure(s.get("distance"), 4)),
            ("sum of the blocks' W2", lambda s: figure(s.get("length"), 4)),
            *((label, _measured(key)) for key, label in RATIOS.items()),
            ("OT score", score),
            ("resolution", lambda s: figure(s.get("resolution"))),
            ("mean turning angle (degrees)", lambda s: fixed(s.get("turning_angle"), 0)),
            ("largest interpolation gap", lambda s: fixed(_largest_gap(s))),
        )
    ]
    header = ("", *(plain(segment_name(s, i)) for i, s in enumerate(segments)))
    means = [stem for stem in plots if stem.startswith("class-means-")]
    return join(
        "# Straightness",
        "On a geodesic of Wasserstein space, run at constant speed, every ratio is 1. The length "
        "and action ratios compare distributions; the line-shape figures follow each sample's own "
        "path. [How they are defined](methods.md).",
        figure_block(plots, "straightness"),
        table(header, rows, "Straightness of every segment; 95 % intervals in brackets."),
        _reference(record),
        _embedded(record),
        "## Where the classes go" if means else "",
        scrubber(record),
        *(figure_block(plots, stem, caption=stem == means[0]) for stem in means),
    )


def _reference(record: Record) -> str:
    """Is the network straighter than what it is compared with?"""
    reference = record.get("reference") or {}
    tests = reference.get("tests") or []
    if reference.get("skipped"):
        return f"Not tested against a reference: {plain(reference['skipped'])}"
    if reference.get("segments"):
        return _among_fresh(reference)
    if not tests:
        return ""
    rows = [
        [
            plain(segment_name(test, i)),
            fixed(test.get("value")),
            fixed(test.get("reference")),
            with_interval(test.get("difference"), test.get("interval"), 3),
            fixed(test.get("effect_size"), 2),
            figure(test.get("p_value"), 2),
        ]
        for i, test in enumerate(tests)
    ]
    header = ("Segment", "network", "reference", "difference", "effect size d", "one-sided p")
    kept = reference.get("kept") or []
    return join(
        "## Straighter than a reference?",
        plain(reference.get("verdict") or ""),
        f"Without fresh weights of their own: {plain(', '.join(kept[:5]), 200)}." if kept else "",
        table(header, rows, "Line-shape ratio of the samples' own paths; 1 is straight."),
    )


def _among_fresh(reference: Mapping[str, Any]) -> str:
    """The network's rank among networks with fresh weights."""
    rows = [
        [
            plain(segment_name(row, i)),
            fixed(row.get("value")),
            fixed(row.get("median")),
            f"{fixed(row.get('low'))} to {fixed(row.get('high'))}",
            figure(row.get("rank_p"), 2),
            figure(row.get("adjusted_p"), 2),
            plain(row["direction"]),
        ]
        for i, row in enumerate(reference["segments"])
    ]
    header = ("Segment", "network", "fresh: median", "range", "rank p", "adjusted p", "outcome")
    kept = reference.get("kept") or []
    networks, images = len(reference.get("networks") or []), reference.get("images")
    return join(
        "## Straighter than fresh weights?",
        f"Without fresh weights of their own: {plain(', '.join(kept[:5]), 200)}." if kept else "",
        table(
            header,
            rows,
            f"Line-shape ratio of the centred paths of {images} images; 1 is straight. The "
            f"p-values are over {networks} networks with fresh weights, two-sided; adjusted, "
            "for all segments together.",
        ),
    )


def _embedded(record: Record) -> str:
    """The whole network in one space."""
    found = record.get("embedded") or {}
    segments = found.get("segments") or []
    if not segments:
        return ""
    rows = [[label, *(_measured(key)(s) for s in segments)] for key, label in RATIOS.items()]
    rows.append(["OT score", *(score(s) for s in segments)])
    return join(
        "## The whole network in one space",
        f"All layers put into one space ({plain(found.get('space'))}), which the network itself "
        f"does not do. {plain(found.get('verdict') or '')}",
        table(
            ("", *(plain(segment_name(s, i)) for i, s in enumerate(segments))), rows, "Embedded."
        ),
    )


def _measured(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda segment: with_interval(segment.get(key), interval(segment, key))


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


def collapse(record: Record, plots: Plots) -> str:
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
        for name, layer, m in zip(names_of(layers, "name"), layers, metrics, strict=True)
    ]
    header = ("Layer", "width", *(name for name, _ in _LAYER_COLUMNS.values()))
    return join(
        "# Collapse",
        "How far the classes have collapsed at each layer: samples onto their class mean (NC1, "
        "CDNV), class means onto a simplex equiangular tight frame (NC2: equal norms, equal "
        "angles, distance to the frame), decisions onto the nearest class centre. All but the "
        "accuracy and the rank are 0 at complete collapse. [How they are defined](methods.md).",
        figure_block(plots, "collapse"),
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
    return join("Undefined values:", "\n".join(said)) if said else ""

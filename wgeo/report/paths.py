"""The pages that describe the path through the layers: transport and straightness."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..plots.paths import RATIOS
from ..plots.style import segment_name, short_names
from ..storage.record import Comparison, Rank, Record, Reference, Segment
from ..thresholds import LOW_RESOLUTION
from .markdown import (
    DASH,
    Plots,
    correlation,
    figure_block,
    fixed,
    general,
    highest_null,
    join,
    last_means,
    names_of,
    percent,
    plain,
    score,
    sentence,
    table,
    value_with_interval,
    with_interval,
)
from .scrubber import scrubber


def transport(record: Record, plots: Plots) -> str:
    blocks = record.blocks
    if not blocks:
        return ""
    certified = sum(block.status == "certified" for block in blocks)
    names = names_of(block.target for block in blocks)
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
        for name, b in zip(names, blocks, strict=True)
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
        _gradient_maps(record, names, plots),
        "## Are there enough samples?" if "sample-sizes" in plots else "",
        figure_block(plots, "sample-sizes"),
    )


def _gradient_maps(record: Record, names: Sequence[str], plots: Plots) -> str:
    if "gradient-maps" not in plots:
        return ""
    keys = ("asymmetry", "displacement_asymmetry", "min_eigenvalue")
    maps = (
        *zip(names, record.blocks, strict=True),
        *zip(_segment_names(record.segments), record.segments, strict=True),
    )
    rows = [
        [
            name,
            *(value_with_interval(row.brenier, key, 3) for key in keys),
            percent(row.brenier.negative_share),
        ]
        for name, row in maps
        if row.brenier
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
            *((f"length ratio over {k} groups of blocks", _over_runs(k)) for k in runs),
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
    header = ("", *_segment_names(segments))
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
        _alignment(record, plots),
        _reference(record),
        _embedded(record),
        "## Paths of the classes" if moving or means or last in plots else "",
        moving,
        "The paths in the last stage are on the first page." if last in plots else "",
        *(figure_block(plots, stem) for stem in means),
    )


def _segment_names(rows: Iterable[Segment | Rank | Comparison]) -> list[str]:
    return [plain(segment_name(row.layers, i)) for i, row in enumerate(rows)]


def _value(key: str) -> Callable[[Segment], str]:
    return lambda segment: value_with_interval(segment, key)


def _centered(key: str) -> Callable[[Segment], str]:
    return lambda segment: value_with_interval(segment.centred, key)


def _over_runs(k: int) -> Callable[[Segment], str]:
    return lambda segment: fixed(segment.length_over_runs.get(k), 3)


def _largest_gap(segment: Segment) -> float | None:
    gaps = [gap for gap in segment.interpolation_gap if gap is not None]
    return max(gaps, default=None)


def _pairs(segments: Sequence[Segment], plots: Plots) -> list[str]:
    parts = []
    for title, segment in zip(_segment_names(segments), segments, strict=True):
        pairs = segment.pairs
        if not pairs.corr_score:
            continue
        names = [plain(name) for name in short_names(pairs.layers, 24)]
        rows = [
            [name, *(fixed(score, 3) if k > j else DASH for k, score in enumerate(scores))]
            for j, (name, scores) in enumerate(zip(names, pairs.corr_score, strict=True))
        ]
        caption = (
            f"{title}: correlation score of the map from the row's layer to the column's layer; 1 "
            "for an optimal map."
        )
        parts.append(table(("from", *names), rows[:-1], caption))
    if not parts:
        return []
    return [
        "## Between which layers is the map optimal?",
        figure_block(plots, "correlation-pairs"),
        *parts,
        figure_block(plots, "distance-pairs"),
    ]


def _reference(record: Record) -> str:
    reference = record.reference
    if reference.skipped:
        return f"Not compared with a reference: {plain(reference.skipped)}"
    body = _fresh_table(reference) or _tests_table(reference.tests)
    if not body:
        return ""
    kept = ", ".join(reference.kept[:5])
    return join(
        "## Straighter than a reference?",
        *(sentence(s.words) for s in record.verdict if s.claim == "reference"),
        f"Parameters that kept their trained values: {plain(kept, 200)}." if kept else "",
        body,
    )


def _fresh_table(reference: Reference) -> str:
    rows = [
        [
            name,
            fixed(row.value),
            f"{fixed(row.median)} [{fixed(row.low)}, {fixed(row.high)}]",
            general(row.as_straight),
            general(row.as_bent),
            general(row.rank_p, 2),
            general(row.adjusted_p, 2),
            plain(row.direction or DASH),
        ]
        for name, row in zip(_segment_names(reference.segments), reference.segments, strict=True)
    ]
    header = (
        *("Segment", "this network", "random: median [range]", "as straight", "as bent"),
        *("rank p", "adjusted p", "direction"),
    )
    return table(
        header,
        rows,
        f"Line-shape ratio of the centered paths compared with those of {len(reference.networks)} "
        f"randomly initialized networks, on {general(reference.images)} images; 1 is straight. As "
        "straight, as bent: the number of these networks whose ratio is at most, or at least, that "
        "of this network. Adjusted: for multiple segments.",
    )


def _tests_table(tests: Sequence[Comparison]) -> str:
    rows = [
        [
            name,
            fixed(test.value),
            fixed(test.reference),
            with_interval(test.difference, test.interval, 3),
            fixed(test.effect_size, 2),
            general(test.p_value, 2),
        ]
        for name, test in zip(_segment_names(tests), tests, strict=True)
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
    rows = [
        [label, *(value_with_interval(s, key) for s in segments)] for key, label in RATIOS.items()
    ]
    rows.append(["OT score", *(score(s) for s in segments)])
    return join(
        "## The whole network in one space",
        f"Unlike in the network itself, all layers are embedded in one space "
        f"({plain(embedded.space)}).",
        *(sentence(s.words) for s in embedded.verdict),
        table(("", *_segment_names(segments)), rows, "Embedded."),
    )


def _alignment(record: Record, plots: Plots) -> str:
    comparison = record.alignment
    if comparison.skipped:
        return f"Residual Jacobians were not compared: {plain(comparison.skipped)}"
    if not comparison.segments:
        return ""
    segments = [
        [
            f"{plain(s.blocks[0], 40)} to {plain(s.blocks[-1], 40)}",
            *(value_with_interval(s, key, 3) for key in ("overlap_uv", "overlap_uu", "overlap_vv")),
            general(s.chance, 2),
            value_with_interval(s, "coupling", 3),
            general(s.chance_coupling, 3),
            with_interval(s.slope, s.interval("slope")),
        ]
        for s in comparison.segments
    ]
    keys = ("overlap", "sign", "share", "participation", "asymmetry", "along", "residual")
    rows = [
        [
            name,
            general(block.singular_values[0]) if block.singular_values else DASH,
            *(general(block.measure(key)) for key in keys),
        ]
        for name, block in zip(
            names_of(block.name for block in comparison.blocks), comparison.blocks, strict=True
        )
    ]
    return join(
        "## Do the blocks do the same thing?",
        "The residual Jacobian is the derivative of a block's output with respect to its input, "
        "without the shortcut. Along a geodesic, the Jacobians of all blocks have the same "
        "singular vectors, and the slope is 1. [Definitions](methods.md).",
        "The statistics of batch normalization were never estimated, so the analyzed function is "
        "not the one with which training starts."
        if comparison.reset_statistics
        else "",
        figure_block(plots, "alignment"),
        table(
            (
                *("Blocks", "overlap", "of outputs", "of inputs", "by chance"),
                *("coupling", "by chance", "slope"),
            ),
            segments,
            f"Overlap of the {general(comparison.vectors)} leading singular directions of "
            "all pairs of blocks, and coupling of adjacent blocks; 95 % intervals over "
            f"{general(comparison.points)} images.",
        ),
        table(
            ("Block", "largest singular value", *keys[:5], "along the step", "error"),
            rows,
            "Residual Jacobian of every block: means over images. The overlap is that of the "
            "block's own output and input directions. Error: the largest relative error of the "
            "singular vectors at any image.",
        ),
    )

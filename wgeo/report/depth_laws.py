"""Sections on what may be constant over depth: the separation rate, the residual Jacobians."""

from __future__ import annotations

from ..storage.record import Record
from ..text import stage_number
from .parts import Plots, figure_block, join, names_of, value_with_interval
from .text import DASH, general, plain, table, with_interval


def alignment(record: Record, plots: Plots) -> str:
    """Tabulate the residual Jacobians of the blocks, and compare them with each other."""
    comparison = record.alignment
    if comparison.skipped:
        return f"Residual Jacobians were not compared: {plain(comparison.skipped)}"
    if not comparison.segments:
        return ""
    runs = [
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
    reset = (
        "The statistics of batch normalization were never estimated, so the analyzed function is "
        "not the one with which training starts."
    )
    return join(
        "## Do the blocks do the same thing?",
        "The residual Jacobian is the derivative of a block's output with respect to its input, "
        "without the shortcut. Along a geodesic, the Jacobians of all blocks have the same "
        "singular vectors, and the slope is 1. [Definitions](methods.md).",
        reset if comparison.reset_statistics else "",
        figure_block(plots, "alignment"),
        table(
            ("Blocks", "overlap", "of outputs", "of inputs", "by chance", *_COUPLING, "slope"),
            runs,
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


_COUPLING = ("coupling", "by chance")


def separation_law(record: Record, plots: Plots) -> str:
    """Tabulate the fits of separation, compression and discrimination over depth."""
    segments = record.separation_law.segments
    keys = ("rate", "correlation", "curvature", "compression_rate", "discrimination_slope")
    rows = [
        [
            "all stages" if s.stage is None else f"stage {stage_number(s.stage)}",
            f"{plain(s.layers[0], 40)} to {plain(s.layers[-1], 40)}",
            *(value_with_interval(s, key, 3) for key in keys),
        ]
        for s in segments
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

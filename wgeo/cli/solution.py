"""Print the record of a solved unconstrained feature model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from ..plots.models import DEEP, TERMS
from ..runtime.terminal import Terminal
from .widths import Column, fit_to_width

COLUMNS = {
    "nc1": "NC1",
    "nc2_equinorm": "norms",
    "nc2_equiangle": "angles",
    "nc2_etf": "to ETF",
    "nc3": "NC3",
    "ncc_accuracy": "NCC acc.",
}


def print_solution(record: Mapping[str, Any]) -> None:
    """Print the objective, its lower bound, a table of collapse by layer, and the certificate."""
    console = Terminal(100)
    console.print(_headline(record))
    console.print(_objective(record))
    title = "Collapse: 0 if complete (accuracy: 1)"
    console.print(fit_to_width(_layers(record), console.width, title=title))
    for line in _verdict(record):
        console.print(line, soft_wrap=not console.is_terminal)


def _headline(record: Mapping[str, Any]) -> Text:
    counts = record["counts"]
    sizes = f"{counts[0]} samples each" if len(set(counts)) == 1 else f"{sum(counts)} samples"
    method = record["settings"].get("method", "descent from the ridge solution and random starts")
    return Text.assemble(
        (record["model"], "bold"),
        f": {record['classes']} classes, {sizes}, {record['dim']} features; {method}, ",
        f"{record['seconds']:.2f} s",
    )


def _objective(record: Mapping[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("objective", f"{record['objective']:.12g}", style="bold")
    for name, value in record["terms"].items():
        if name == "fit" or value:
            table.add_row(f"  {TERMS.get(name, name)}", f"{value:.6g}")
    bound = record["certificate"]["lower_bound"]
    if bound is not None:
        table.add_row("lower bound", f"{bound:.12g}")
    if (collapsed := record["settings"].get("dnc")) is not None:
        table.add_row("deep neural collapse", f"{collapsed:.12g}")
    values = record["values"]
    if len(values) > 1:
        table.add_row(f"best of {len(values)} starts", f"{min(values):.9g}")
        table.add_row("worst", f"{max(values):.9g}")
    return table


def _layers(record: Mapping[str, Any]) -> list[Column]:
    curve = record["curve"]
    weights = "deep" in curve[0]  # one row per weight matrix; MUFM has one per layer of features
    deep = DEEP if weights and len(curve) > 1 else {}
    columns = {
        key: name
        for key, name in COLUMNS.items()
        if any(layer["collapse"].get(key) is not None for layer in curve)
    }
    names = [f"W{k + 1}" if weights else str(k) for k in range(len(curve))]
    return [
        Column("features into" if weights else "layer", names, names=True),
        *(
            Column(name, [_cell(layer["collapse"].get(key)) for layer in curve], int(k > 1))
            for k, (key, name) in enumerate(columns.items())
        ),
        *(
            Column(name, [_cell(layer["deep"][key]) for layer in curve])
            for key, name in deep.items()
        ),
    ]


def _verdict(record: Mapping[str, Any]) -> list[str]:
    certificate = record["certificate"]
    lines = [f"Certificate: {certificate['verdict']}. {certificate['evidence']}"]
    lines[0] += f" Gradient norm {certificate['gradient_norm']:.1e}."
    if (landscape := record["landscape"]) is not None:
        eigenvalues = ", ".join(f"{value:.6g}" for value in landscape["eigenvalues"])
        if landscape["evidence"] != certificate["evidence"]:
            lines.append(f"Landscape: {landscape['verdict']}. {landscape['evidence']}")
        lines.append(f"Smallest Hessian eigenvalues: {eigenvalues}.")
    return lines


def _cell(value: float | None) -> str:
    if value is None:
        return "–"
    return "0" if abs(value) < 1e-12 else f"{value:.3g}"

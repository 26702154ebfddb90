"""Tables of the benchmarks' results, from benchmarks/*.json, for pages to include."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def pages(folder: Path) -> dict[str, str]:
    """Return a table for each benchmark, or the command to run if it was not measured."""
    return {f"measured/{name}.md": _page(folder, name, make) for name, make in TABLES.items()}


def _page(folder: Path, name: str, make: Callable[[Any], str]) -> str:
    benchmark, file = name.partition("-")[0], folder / f"{name.partition('-')[0]}.json"
    text = make(json.loads(file.read_text("utf-8"))) if file.is_file() else ""
    return text or f"*Not measured yet: `python benchmarks/{benchmark}.py` measures it.*\n"


def _transport(record: Record) -> str:
    parts = [_question(question) for question in record["questions"] if question["title"] != _HARD]
    return _versions(record) + "\n".join(part for part in parts if part) if any(parts) else ""


def _question(question: Record) -> str:
    """Return a table with one row per solver, summed over all pairs of the question."""
    asked = {row["pair"] for row in question["rows"]}
    rows: dict[str, list[Record]] = {row["solver"]: [] for row in question["rows"]}
    for row in question["rows"]:
        if "seconds" in row:
            rows[row["solver"]].append(row)
    complete = {solver: found for solver, found in rows.items() if len(found) == len(asked)}
    if "wgeo" not in complete:  # without the certified value there is nothing to compare with
        return ""
    base = _sum(complete["wgeo"], "cpu")
    title = _NAMES.get(question["title"], question["title"])
    pairs = f"{len(asked)} pairs" if len(asked) > 1 else "one pair"
    missing = [solver for solver in rows if solver not in complete]
    note = f"\nDid not finish: {', '.join(missing)}.\n" if missing else ""
    body = [_solver(solver, found, base) for solver, found in complete.items()]
    return f"**{title}, N = {question['samples']}, {pairs}**\n\n{_table(_HEAD, body)}{note}"


_HEAD = ("Solver", "seconds", "CPU s", "against wgeo", "peak MiB", "error of W2²", "reported error")


def _solver(solver: str, rows: Sequence[Record], base: float) -> list[str]:
    cpu = _sum(rows, "cpu")
    return [
        solver,
        f"{_sum(rows, 'seconds'):.3g}",
        f"{cpu:.3g}",
        "" if solver == "wgeo" else f"{cpu / base:.1f} ×",
        f"{max(row['peak'] for row in rows) / 2**20:.0f}",
        f"{max(row.get('error', 0.0) for row in rows):.0e}",
        _worst(rows, "gap"),
    ]


_HARD = "hard clouds"


def _hard(record: Record) -> str:
    """Return CPU seconds, one row per kind of clouds; solvers faster than wgeo are in bold."""
    parts = []
    for question in record["questions"]:
        if question["title"] != _HARD:
            continue
        rows = question["rows"]
        solvers = list(dict.fromkeys(row["solver"] for row in rows))
        cells = {(row["pair"], row["solver"]): row for row in rows}
        body = [
            [kind, *(_ahead(cells.get((kind, s), {}), cells[kind, "wgeo"]) for s in solvers)]
            for kind in dict.fromkeys(row["pair"] for row in rows)
        ]
        head = [f"N = {question['samples']}", *solvers]
        parts.append(_table(head, body))
    return "\n".join(parts)


def _ahead(row: Record, wgeo: Record) -> str:
    if "cpu" not in row:
        return str(row.get("skipped", "not run"))
    seconds = f"{row['cpu']:.2g}"
    return f"**{seconds}**" if row["cpu"] < wgeo.get("cpu", 0.0) else seconds


_NAMES = {
    "chain": "Every block, and every stage end to end",
    "easy pair": "A block that moves little",
    "hard pair": "The hardest pair",
    "large": "Many samples",
}


def _blurs(record: Record) -> str:
    """Return the blur that GeomLoss needed for an error below 0.1 %."""
    rows = []
    for question in record["questions"]:
        found = [row for row in question["rows"] if row.get("blur")]
        for solver in dict.fromkeys(row["solver"] for row in found):
            own = [row for row in found if row["solver"] == solver]
            blurs = [row["blur"] for row in own]
            errors = [row["error"] for row in own if "error" in row]
            if errors:
                rows.append(
                    [
                        solver,
                        question["samples"],
                        _range(blurs),
                        f"{min(errors):.0e} to {max(errors):.0e}",
                        f"{_sum(own, 'cpu'):.3g}",
                    ]
                )
    head = ["GeomLoss run", "N", "blur, over the pairs", "error of W2²", "CPU seconds"]
    return _table(head, rows) if rows else ""


def _collapse(record: Record) -> str:
    rows = [row for row in record["rows"] if "cpu_seconds" in row]
    forms = list(dict.fromkeys(row["form"] for row in record["rows"]))
    body = []
    for width in sorted({row["width"] for row in record["rows"]}):
        cells = {row["form"]: row for row in rows if row["width"] == width}
        body.append([width, *(_cost(cells.get(form)) for form in forms)])
    samples = {row["samples"] for row in record["rows"]}
    note = (
        f"N = {_range(sorted(samples))}; CPU seconds, and peak memory in addition to that of the "
        "features.\n\n"
    )
    return note + _table(["Width d", *forms], body)


def _cost(row: Record | None) -> str:
    if row is None:
        return "not run"
    return f"{row['cpu_seconds']:.3g} s, {row['peak_bytes'] / 2**20:.0f} MiB"


def _definitions(record: Record) -> str:
    """Return the digits to which other scripts' values agree with wgeo's."""
    cases = ("equal", "unequal", "collapsed")
    body = []
    for rows in zip(*(record[case] for case in cases), strict=True):
        row = rows[0]
        names = [f"{row['source']}: {row['metric']}", row["conversion"], f"`{row['weights']}`"]
        body.append([*names, *(f"{_digits(r['float32'])} / {_digits(r['float64'])}" for r in rows)])
    equal, unequal = (record[f"{case}_sizes"] for case in cases[:2])
    note = (
        f"{record['network']}, {record['width']} features before the classifier; "
        f"{_range((min(equal), max(equal)))} samples per class if equal, "
        f"{_range((min(unequal), max(unequal)))} if unequal; digits in float32 / float64.\n\n"
    )
    return note + _table(["Script: metric", "in wgeo", "`weights`", *cases], body)


def _digits(digits: float) -> str:
    return "all" if digits >= 16 else f"{digits:.1f}"


def _scale(record: Record) -> str:
    rows = [
        [
            _SCALED[task],
            f"{row['cpu']:.0f}",
            *(f"{row[key] / 2**30:.2f}" for key in ("anon", "peak")),
        ]
        for task, row in record.get("large", {}).items()
        if "seconds" in row
    ]
    large = _table(["", "CPU seconds", "own, GiB", "resident, GiB"], rows) if rows else ""
    sweep = record.get("sweep", {})
    powers = [
        [words, *(_powers(sweep.get(f"{task} over {axis}")) for axis in _AXES)]
        for task, words in _SCALED.items()
        if f"{task} over n" in sweep
    ]
    note = (
        "\nExponents of the growth of CPU time / own memory as one size grows, and the largest "
        "value of this size:\n\n"
    )
    return large + (note + _table(["", *_AXES.values()], powers) if powers else "")


def _powers(found: Record | None) -> str:
    """Return the fitted exponents, and the largest size measured."""
    if found is None:
        return "not run"
    powers = ["?" if p is None else f"{max(p, 0):.1f}" for p in found["exponents"].values()]
    size = next(name for name in _AXES if len({row[name] for row in found["rows"]}) > 1)
    return f"{' / '.join(powers)}, to {max(row[size] for row in found['rows'])}"


def _ranks(record: Record) -> str:
    rows = [
        [
            _SCALED[task],
            f"{row['n']} x {row['d']} x {row['layers']}",
            row["ranks"],
            f"{row['seconds']:.2f}",
            f"{row['cpu']:.2f}",
        ]
        for task, found in record.get("ranks", {}).items()
        for row in found["rows"]
    ]
    return (
        _table(
            ["", "samples, features, layers", "processes", "seconds", "CPU seconds of the first"],
            rows,
        )
        if rows
        else ""
    )


_AXES = {"n": "samples", "d": "features", "layers": "layers"}

_SCALED = {
    "collapse": "every collapse metric, every layer",
    "paths": "line shapes and angles of every sample",
    "sliced": "straightness with sliced transport",
    "certified": "$W_2$ of one block, certified",
    "sinkhorn": "$W_2$ of one block, Sinkhorn",
    "compared": "comparison of the layers with all models, MUFM fitted",
}


def _mufm(record: Record) -> str:
    rows = [
        [
            row["n"],
            f"{row['wgeo']['seconds']:.2g} s",
            *(_until(row.get(peer), row["wgeo"]["seconds"]) for peer in ("lbfgs", "adam")),
        ]
        for row in sorted(record["rows"].values(), key=lambda row: row["n"])
    ]
    return _table(["N", "`fit_mufm`", "L-BFGS over all features", "Adam over all features"], rows)


def _until(peer: Record | None, ours: float) -> str:
    if peer is None:
        return "not run"
    ratio = peer["seconds"] / ours
    if peer["reached"]:
        return f"{peer['seconds']:.3g} s ({ratio:.0f} ×)"
    return f"{peer['gap']:.0e} above the minimum after {peer['seconds']:.0f} s (> {ratio:.0f} ×)"


def _ufm(record: Record) -> str:
    first = record["rows"][0]["seconds"]
    rows = [
        [
            row["name"],
            f"{row['seconds']:.3g}",
            f"{row['seconds'] / first:.1f} ×",
            f"{row['below_tolerance']:.0%}",
            f"{row['at_collapse']:.0%}",
        ]
        for row in record["rows"]
    ]
    seconds = "CPU seconds" if "wall_seconds" in record["rows"][0] else "seconds"
    return _table(["Descent", seconds, "ratio", "converged", "at the optimum"], rows)


def _gpu(record: Record) -> str:
    return record["tables"]


def _versions(record: Record) -> str:
    libraries = ", ".join(
        f"{name} {version}"
        for name, version in record["versions"].items()
        if name not in ("python", "machine", "cuda") and version != "not installed"
    )
    threads = record["threads"]
    return f"Python {record['versions']['python']}, {libraries}; {threads} threads.\n\n"


def _sum(rows: Sequence[Record], key: str) -> float:
    return sum(row[key] for row in rows)


def _worst(rows: Sequence[Record], key: str) -> str:
    values = [row[key] for row in rows if key in row]
    return f"{max(values):.0e}" if values else "none"


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _coverage(rows: Sequence[Record]) -> str:
    body = [
        [
            row["what"],
            f"{row['nominal']:.2f}",
            f"{row['rate']:.3f} ± {row['error']:.3f}",
            row["runs"],
        ]
        for row in rows
    ]
    return _table(("Interval or test", "nominal", "measured", "runs"), body)


def _table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


TABLES: dict[str, Callable[[Any], str]] = {
    "transport": _transport,
    "transport-blurs": _blurs,
    "transport-hard": _hard,
    "collapse": _collapse,
    "definitions": _definitions,
    "ufm": _ufm,
    "mufm": _mufm,
    "scale": _scale,
    "scale-ranks": _ranks,
    "coverage": _coverage,
    "gpu": _gpu,
}

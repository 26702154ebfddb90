"""Write the Markdown of a report: escaped names, numbers, tables, figures, the headline."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any
from urllib.parse import quote

import numpy as np

from ..plots.files import as_csv
from ..plots.sources import Plot
from ..plots.style import clean, has_resolution, number, short, short_names
from ..storage.record import Block, Layer, Measured, Record, Segment, SeriesRecord
from ..text import percent as in_percent
from ..text import stage_number

Plots = Mapping[str, Plot]

# --- text ----------------------------------------------------------------------------------------

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")


def plain(value: Any, width: int | None = None) -> str:
    """Escape text as one line of Markdown that renders verbatim.

    All ASCII punctuation gets a backslash, as CommonMark allows, so no markup or HTML can begin.
    """
    return escaped(clean(value) if width is None else short(value, width))


def escaped(text: str) -> str:
    """Escape printable text like `plain`, and keep the spaces at its ends."""
    return _PUNCTUATION.sub(r"\\\1", text)


def sentence(text: str) -> str:
    """Escape text like `plain`, but keep text in backquotes as code."""
    parts = re.split(r"`([^`]+)`", clean(text))
    return "".join(f"`{part}`" if k % 2 else escaped(part) for k, part in enumerate(parts))


def code(text: str) -> str:
    """Return a code block, fenced by more backticks than it contains."""
    lines = "\n".join(clean(line) if line.strip() else "" for line in text.splitlines())
    longest = max((len(run) for run in re.findall(r"`+", lines)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{lines}\n{fence}"


def raw_html(html: str) -> str:
    """Return HTML as a block of Markdown; the PDF omits such blocks."""
    return f"```````{{raw}} html\n{html}\n```````"


def term(words: str, entry: str | None = None) -> str:
    """Return `words` as a link to the glossary, to `entry` if the term differs from the words."""
    return f"{{term}}`{words}`" if entry is None else f"{{term}}`{words} <{entry}>`"


def join(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def asset(name: str) -> str:
    """Return the text of a file in the folder ``assets``."""
    return resources.files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


# --- numbers -------------------------------------------------------------------------------------

DASH = "–"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def general(value: Any, digits: int = 3) -> str:
    """Format a number with `digits` significant digits; an undefined number is a dash.

    Integers keep all digits, and large numbers are rounded to integers, not further.
    """
    x = number(value)
    if not np.isfinite(x):
        return DASH
    if isinstance(value, int):
        return f"{value:,}"
    rounded = float(f"{x:.{digits}g}")  # in three digits, 999.7 is 1000, which has four
    text = f"{x:,.0f}" if abs(rounded) >= 10**digits else f"{x:z#.{digits}g}".rstrip(".")
    mantissa, e, exponent = text.partition("e")
    power = f"·10{str(int(exponent)).translate(_SUPERSCRIPTS)}" if e else ""
    return mantissa.replace("-", "−") + power


def fixed(value: Any, decimals: int = 3) -> str:
    """Format a number with `decimals` decimals; an undefined number is a dash."""
    x = number(value)
    return f"{x:z.{decimals}f}".replace("-", "−") if np.isfinite(x) else DASH


def percent(value: Any) -> str:
    """Format a share as in sentences, such as ``99.96 %``; an undefined number is a dash."""
    x = number(value)
    return in_percent(x).replace("-", "−") if np.isfinite(x) else DASH


def with_interval(value: Any, interval: Any, decimals: int = 2) -> str:
    """Format ``1.12 [1.08, 1.17]``, or the value alone if there is no interval."""
    ends = [number(end) for end in interval] if isinstance(interval, list | tuple) else []
    if len(ends) != 2 or not np.isfinite(ends).all():
        return fixed(value, decimals)
    return f"{fixed(value, decimals)} [{fixed(ends[0], decimals)}, {fixed(ends[1], decimals)}]"


def value_with_interval(source: Measured, key: str, decimals: int = 2) -> str:
    return with_interval(source.measure(key), source.interval(key), decimals)


def score(item: Block | Segment) -> str:
    """Return the OT score, in parentheses unless the resolution is known to be sufficient."""
    text = fixed(item.ot_score, 4)
    return text if text == DASH or has_resolution(item) else f"({text})"


def correlation(item: Block | Segment) -> str:
    """Return the correlation score, in parentheses unless null maps score clearly lower."""
    text = fixed(item.measure("corr_score"), 4)
    return text if text == DASH or item.power else f"({text})"


def highest_null(item: Block | Segment) -> str:
    return fixed(item.highest_null, 3)


# --- names ---------------------------------------------------------------------------------------


def names_of(names: Iterable[str]) -> list[str]:
    return [plain(name) for name in short_names(list(names), 40)]


def base_name(path: str) -> str:
    """Return the last component of a path from any operating system, to hide the folders."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2] or path


def layer_title(name: str) -> str:
    """Return a layer's name, or a description if the layer is the output of a shortcut."""
    block, _, child = name.rpartition(".")
    return f"input of {block}, mapped by its shortcut" if block and child == "shortcut" else name


def stage_ends(segment: Segment, layers: Sequence[Layer]) -> Sequence[Layer]:
    """Return the layers before a segment's first block and after its last; () if unknown.

    If the segment begins with the output of a shortcut, the first is the layer before the segment.
    """
    names = segment.layers
    positions = {layer.name: i for i, layer in enumerate(layers)}
    inner = [positions[name] for name in names if name in positions]
    if not inner:
        return ()
    return layers[max(inner[0] - (names[0] not in positions), 0)], layers[inner[-1]]


def stage_title(segment: Segment, index: int, layers: Sequence[Layer]) -> str:
    """Return ``Stage 2, layer1.2 → layer2.2``; the number alone if the layers are unknown."""
    names = short_names([layer.name for layer in stage_ends(segment, layers)], 20)
    number = stage_number(segment.stage, index)
    return f"Stage {number}{', ' if names else ''}{' → '.join(names)}"


def path_descriptions(record: Record) -> list[str]:
    """Return the verdict on each segment's shape: "bent", "between ... and ..." or "undecided".

    It is a dash if the verdict does not judge the shape.
    """
    by_ends = {
        tuple(s.evidence.get("layers") or ()): s.evidence.get("shape")
        for s in record.verdict
        if s.claim == "straightness"
    }
    descriptions = []
    for segment in record.segments:
        names = by_ends.get((segment.layers[0], segment.layers[-1])) if segment.layers else None
        text = DASH
        if isinstance(names, list):
            text = " and ".join(plain(name) for name in names) or "undecided"
            text = f"between {text}" if len(names) > 1 else text
        descriptions.append(text)
    return descriptions


# --- tables --------------------------------------------------------------------------------------


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], caption: str, *, text_columns: int = 1
) -> str:
    """Return a Markdown table with text in the first columns and numbers in the others.

    The cells of the first `text_columns` columns (one or two) may break over lines. On an HTML
    page, a link after the table downloads it as CSV. Without rows, the text is empty.
    """
    rows = list(rows)
    if not rows:
        return ""
    alignment = [":--"] * text_columns + ["--:"] * (len(header) - text_columns)
    body = "\n".join("| " + " | ".join(line) + " |" for line in (header, alignment, *rows))
    kind = f":class: words-{text_columns}\n\n" if text_columns > 1 else ""
    return (
        f"```````{{table}} {caption}\n{kind}{body}\n```````\n\n{_download(header, rows, caption)}"
    )


def _download(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """Return a link, in raw HTML, that contains the table as CSV and so needs no file."""
    file = re.sub(r"[^a-z0-9]+", "-", _shown(caption).partition(".")[0].lower())[:50].strip("-")
    data = quote(as_csv(_columns(header, rows)), safe="")
    return raw_html(
        f'<p class="wgeo-csv"><a download="{file or "table"}.csv" '
        f'href="data:text/csv;charset=utf-8,{data}">Download this table as CSV</a></p>'
    )


_ROLE = re.compile(r"\{term\}`([^`<]+?)(?: <[^`]*>)?`")
_LINK = re.compile(r"<a [^>]*>|</a>")
_INTERVAL = re.compile(r"(\S+) \[(\S+), (\S+)\]")
_POWER = re.compile(r"·10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)$")
_FROM_SUPERSCRIPTS = {superscript: digit for digit, superscript in _SUPERSCRIPTS.items()}


def _shown(markdown: str) -> str:
    """Return the text of a cell without roles, links and escapes."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", _LINK.sub("", _ROLE.sub(r"\1", markdown)))


def _columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Return the rows of a table for CSV; an interval becomes two additional columns."""
    result: list[dict[str, str]] = [{} for _ in rows]
    for j, title in enumerate(map(_shown, header)):
        cells = [_shown(row[j]) for row in rows]
        title = title if title not in (result[0] if result else {}) else f"{title} {j}"
        ends = [_INTERVAL.fullmatch(cell) for cell in cells]
        for row, cell, parts in zip(result, cells, ends, strict=True):
            row[title] = _numeric(parts[1] if parts else cell)
            if any(ends):
                for k, side in ((2, "low"), (3, "high")):
                    row[f"{title} {side}"] = _numeric(parts[k]) if parts else ""
    return result


def _numeric(cell: str) -> str:
    """Return a formatted number as programs read it, "" for a dash, and other text unchanged."""
    if cell == DASH:
        return ""
    number = _POWER.sub(lambda match: "e" + match[1].translate(_FROM_SUPERSCRIPTS), cell)
    number = re.sub(r"(?<=\d),(?=\d{3})", "", number.replace("−", "-"))
    try:
        float(number)
    except ValueError:
        return cell
    return number


def key_values(pairs: Iterable[tuple[str, str]], caption: str) -> str:
    """Return a table of names and values, both in Markdown; an empty text if there are none."""
    body = "\n".join(f"* - {name}\n  - {value}" for name, value in pairs)
    options = ":class: key-values\n:stub-columns: 1\n:widths: auto"
    return f"```````{{list-table}} {caption}\n{options}\n\n{body}\n```````" if body else ""


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested settings into rows of a table, named "outer: inner"; skip empty values."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            rows += flat(value, f"{name}: ")
        elif isinstance(value, list) and len(value) > 12:
            rows.append((plain(name), f"{len(value)} values, see analysis\\.json"))
        elif value not in (None, "", []):
            shown = f"{value:.6g}" if isinstance(value, float) else value
            rows.append((plain(name), plain(shown, 400)))
    return rows


# --- figures and headline ------------------------------------------------------------------------


def figure_block(plots: Plots, stem: str) -> str:
    """Return the figure `stem`, its caption and links; an empty text if it was not drawn."""
    plot = plots.get(stem)
    if plot is None:
        return ""
    files = f"figures/{stem}"
    links = " · ".join(
        f"{{download}}`{name} <{files}.{ending}>`"
        for name, ending in (("data", "csv"), ("PNG", "png"), ("SVG", "svg"))
    )
    alt = json.dumps(plot.alt, ensure_ascii=False)  # a JSON string is a valid YAML string
    return f"```{{figure}} {files}.*\n:alt: {alt}\n\n{plot.caption} ({links})\n```"


def last_means(record: Record) -> str:
    """Return the stem of the figure on the first page: the class means in the last segment."""
    return f"class-means-{len(record.segments)}"


_TERMS = {  # terms that a headline may contain, and their entries in the glossary
    "path of the features": "path",
    "stages": "stage",
    "stage": "stage",
    "straight": "straight",
    "bent": "straight",
    "collapsed": "collapsed",
    "collapse": "collapsed",
    "last layer": "last layer",
    "95 % intervals": "interval",
    "normalized": "normalization",
    "guessing": "guessing",
    "NC1": "NC1",
}
_WORDS = re.compile(rf"\b({'|'.join(_TERMS)})\b")


def headline_box(record: Record | SeriesRecord) -> str:
    """Return the recorded headline in a box; the first use of each term links to the glossary."""
    words = record.headline.words
    if not words:
        return ""
    linked: set[str] = set()
    parts = []
    for k, part in enumerate(_WORDS.split(clean(words))):
        entry = _TERMS[part] if k % 2 else ""
        parts.append(term(part, entry) if entry and entry not in linked else escaped(part))
        linked.add(entry)
    text = "".join(parts)
    return f"```````{{admonition}} In one sentence\n:class: tip wgeo-headline\n\n{text}\n```````"

"""``wgeo sweep``: many analyses, configured by a file."""

from __future__ import annotations

import glob
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from ..analysis.plan import NETWORK_SETTINGS, SETTINGS, is_stored
from ..errors import ArgumentError
from ..storage.files import folder_name, require_regular, writable
from ..text import suggestion
from .analysis import analyze
from .jobs import Job, folder_names, gather
from .options import jobs_option, report_option
from .root import command, with_flags


@command(
    "sweep",
    "Analyze many networks, configured by a file.",
    "wgeo sweep sweep.toml --jobs 4\n"
    "wgeo sweep sweep.toml --index $SLURM_ARRAY_TASK_ID/20    # in a Slurm array 1-20\n"
    "wgeo sweep sweep.toml                                    # runs what is missing, compares all",
)
@click.argument("config", type=click.Path(path_type=Path))
@jobs_option
@click.option(
    "--index", metavar="I/N", help="Run only every N-th analysis, from the I-th (1 to N)."
)
@report_option
def sweep(config: Path, jobs: int, index: str | None, with_report: bool) -> None:
    """Analyze many networks, configured by a TOML file; finished analyses are not repeated.

    \b
    The file contains `out`, `checkpoints` (paths, in which `*` is allowed) and options of
    `wgeo analyze` except `jobs`, `store` and `report`. Options are written without the two dashes,
    and numbers without quotes. For example:
        out = "runs/sweep"
        data = "digits"
        samples = 500
        [[run]]
        checkpoints = "runs/a/checkpoints/*.pt"
        [[run]]
        name = "pre"
        checkpoints = "runs/b/last.pt"
        tap = "pre"
        [[run]]
        checkpoints = "features/c"

    Every [[run]] inherits the options at the top of the file. Features stored by `wgeo trace` do
    not inherit the options for images and networks. If a run has a `name`, the folders of its
    analyses begin with that name. Paths are relative to the current folder.
    """
    out, jobs_by_name = read_config(config)
    if len(jobs_by_name) < 2:
        raise ArgumentError(
            f"{config} names fewer than two checkpoints; analyze one with `wgeo analyze`."
        )
    part = _parse_index(index)
    gather(jobs_by_name, writable(out), processes=jobs, part=part, with_report=with_report)


def read_config(path: Path) -> tuple[str, dict[str, Job]]:
    """Return a sweep's output folder and its jobs by name; raise an ArgumentError if invalid."""
    try:
        require_regular(path)
        config = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArgumentError(f"{path} cannot be read: {error}") from error
    if any("\0" in text for text in _strings(config)):
        raise ArgumentError(f"{path} contains a null character.")
    runs = config.pop("run", [{}])
    out = config.pop("out", None)
    are_tables = isinstance(runs, list) and all(isinstance(run, dict) for run in runs)
    if not isinstance(out, str) or not are_tables:
        raise ArgumentError(f'{path} needs out = "FOLDER", and every run as a table [[run]].')
    shared = _settings(config, path)
    jobs: dict[str, Job] = {}
    for run in runs:
        table = {**config, **run}
        prefix = table.get("name", "")
        if not isinstance(prefix, str) or folder_name(prefix) != prefix:
            raise ArgumentError(
                f"{path}: name = {prefix!r} cannot be the name of a folder; "
                f"{folder_name(str(prefix)) or 'run'!r} can."
            )
        targets, own = _matching_files(table.get("checkpoints"), path), _settings(run, path)
        for name, target in folder_names(targets, prefix, tuple(jobs)).items():
            omitted = NETWORK_SETTINGS if is_stored(target) else ()
            inherited = {key: value for key, value in shared.items() if key not in omitted}
            try:
                jobs[name] = Job.of(target, {**inherited, **own})
            except ArgumentError as error:
                raise ArgumentError(f"{path}: {with_flags(str(error), analyze)}") from error
    return out, jobs


def _strings(value: Any) -> Iterator[str]:
    """Yield all strings of a configuration, including names of options."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, str):
        yield value


def _matching_files(patterns: Any, path: Path) -> list[str]:
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(patterns, list) or not patterns:
        raise ArgumentError(f'{path} needs checkpoints = "..." for every run.')
    files: list[str] = []
    for pattern in patterns:
        names = sorted(glob.glob(str(pattern), recursive=True)) or [str(pattern)]
        if names == [str(pattern)] and not Path(names[0]).exists():
            raise ArgumentError(f"{path}: there is no checkpoint {pattern}.")
        files += names
    return files


def _settings(table: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the settings of an analysis in a table, under the names of the Python parameters."""
    names = {
        option.opts[0].removeprefix("--"): option.name
        for option in analyze.params
        if option.name in SETTINGS
    }
    settings = {}
    for key, value in table.items():
        if key in ("name", "checkpoints"):
            continue
        if key not in names:
            raise ArgumentError(
                f"{path}: {key!r} is not an option of an analysis{suggestion(key, names)}."
            )
        settings[names[key]] = value
    return settings


def _parse_index(index: str | None) -> tuple[int, int]:
    """Parse ``"3/10"`` as ``(3, 10)``; without an index, return ``(1, 1)``, the whole sweep."""
    if index is None:
        return 1, 1
    part, slash, count = index.partition("/")
    if not (slash and part.isdecimal() and count.isdecimal() and 1 <= int(part) <= int(count)):
        raise ArgumentError(f"--index: {index!r} does not have the form I/N, with I from 1 to N.")
    return int(part), int(count)

"""``wgeo sweep``: many analyses, as a file says."""

from __future__ import annotations

import glob
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from ..errors import ArgumentError
from ..storage.files import folder_name, require_regular
from .analysis import analyze, job_of
from .gathering import gather, named
from .job import NETWORK_WORDS, Job
from .root import command


@command(
    "sweep",
    "Analyse many networks as a file says.",
    "wgeo sweep sweep.toml --jobs 4\n"
    "wgeo sweep sweep.toml --index $SLURM_ARRAY_TASK_ID/20    # in a Slurm array 1-20\n"
    "wgeo sweep sweep.toml                                    # sets all that is done side by side",
)
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--jobs", "processes", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--index", metavar="I/N", help="Every N-th analysis only, from the I-th (1 to N).")
@click.option("--report/--no-report", "with_report", default=True, help="Build the HTML report.")
def sweep(config: Path, processes: int, index: str | None, with_report: bool) -> None:
    """Analyse many networks as a TOML file says; what is done already is not done again.

    \b
    The file has `out`, `checkpoints` (paths, * allowed) and any option of `wgeo analyze`:
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

    Every [[run]] takes what stands above for granted, but for options of images and networks where
    it names features that `wgeo trace` stored. Paths are seen from where the command runs.
    """
    from ..storage.files import writable

    out, jobs = read_config(config)
    if len(jobs) < 2:
        raise ArgumentError(f"{config} names one checkpoint; `wgeo analyze` analyses one.")
    for job in jobs.values():
        job.check()
    part = _part(index)
    gather(jobs, writable(out), processes=processes, part=part, with_report=with_report)


def read_config(path: Path) -> tuple[str, dict[str, Job]]:
    """Return a sweep's folder, and its jobs by name.

    Raises
    ------
    ArgumentError
        No such file, no TOML, an option that `wgeo analyze` does not have, no checkpoints.
    """
    try:
        require_regular(path)
        config = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArgumentError(f"{path} cannot be read: {error}") from error
    if any("\0" in text for text in _texts(config)):
        raise ArgumentError(f"{path} holds a null character, which no path or option can.")
    runs = config.pop("run", [{}])
    out = config.pop("out", None)
    tables = isinstance(runs, list) and all(isinstance(run, dict) for run in runs)
    if not isinstance(out, str) or not tables:
        raise ArgumentError(f'{path} must say out = "FOLDER", and its runs as [[run]].')
    jobs: dict[str, Job] = {}
    for run in runs:
        said = {**config, **run}
        prefix = said.pop("name", "")
        if not isinstance(prefix, str) or folder_name(prefix) != prefix:
            raise ArgumentError(
                f"{path}: name = {prefix!r} cannot be the name of a folder; "
                f"{folder_name(str(prefix)) or 'run'!r} can."
            )
        targets = _found(said.pop("checkpoints", None), path)
        for name, target in named(targets, prefix, tuple(jobs)).items():
            dropped = set(NETWORK_WORDS) - set(run) if Path(target).is_dir() else set()
            mine = {key: value for key, value in said.items() if key not in dropped}
            jobs[name] = _job(target, mine, path)
    return out, jobs


def _texts(value: Any) -> Iterator[str]:
    """Every text in a configuration, names of options included."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def _found(patterns: Any, path: Path) -> list[str]:
    """The files that patterns name, those of each in order."""
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(patterns, list) or not patterns:
        raise ArgumentError(f'{path} must say checkpoints = "..." for every run.')
    found: list[str] = []
    for pattern in patterns:
        names = sorted(glob.glob(str(pattern), recursive=True)) or [str(pattern)]
        if names == [str(pattern)] and not Path(names[0]).exists():
            raise ArgumentError(f"{path}: there is no checkpoint {pattern}.")
        found += names
    return found


def _job(target: str, said: Mapping[str, Any], path: Path) -> Job:
    """The job that `wgeo analyze` would make of the same options."""
    words = ["--out=."]
    for key, value in said.items():
        if not key or "=" in key:
            raise ArgumentError(f"{path}: {key!r} is not an option of `wgeo analyze`.")
        if isinstance(value, bool):
            words += [f"--{key}"] if value else ["--no-mufm"] if key == "mufm" else []
        else:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words.append(f"--{key}={text}")
    if "help" in said:  # the one option that is no setting
        raise ArgumentError(f"{path}: help is not an option of an analysis.")
    try:
        ctx = analyze.make_context("analyze", [*words, "--", target])
    except click.ClickException as error:
        raise ArgumentError(f"{path}: {error.format_message()}") from error
    return job_of(ctx, target)


def _part(index: str | None) -> tuple[int, int]:
    """``"3/10"`` -> ``(3, 10)``."""
    if index is None:
        return 1, 1
    first, slash, count = index.partition("/")
    if not (slash and first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise ArgumentError(f"--index: {index!r} is not of the form I/N, I from 1 to N.")
    return int(first), int(count)

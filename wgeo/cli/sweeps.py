"""Many analyses: each in a folder of its own, done once, and set side by side. ``wgeo sweep``."""

from __future__ import annotations

import glob
import itertools
import multiprocessing
import os
import threading
import tomllib
from collections.abc import Iterator, Mapping
from multiprocessing import connection
from pathlib import Path
from typing import Any

import click

from ..errors import ArgumentError, RecordError, WgeoError
from ..progress import track
from .job import Job
from .root import as_typed, command

CONTEXT = "forkserver"  # libraries are imported once, and a job's process is its own
_PRELOAD = ["wgeo.analysis", "wgeo.cli.job"]


def run_all(
    jobs: Mapping[str, Job], folder: Path, *, processes: int = 1, part: tuple[int, int] = (1, 1)
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Run jobs that are not done, each into a folder of its name; one failing is told.

    Parameters
    ----------
    jobs : mapping of str to Job
    folder : Path
    processes : int
        How many at once.
    part : (i, n)
        Every n-th job only, beginning with the i-th (from 1).

    Returns
    -------
    done : dict of str to dict
        Records of all jobs that are done by now, whoever did them, in the order of the jobs.
    failed : dict of str to str
        Why, by name.
    """
    failed: dict[str, str] = {}
    records: dict[str, dict[str, Any]] = {}
    for name, job in jobs.items():
        try:
            if (found := _done(job, folder / name)) is not None:
                records[name] = found
        except (WgeoError, OSError) as error:
            failed[name] = _tell(job, str(error))
    if records:
        click.echo(f"{len(records)} of {len(jobs)} analyses were done before.", err=True)
    mine = list(jobs)[part[0] - 1 :: part[1]]
    todo = {name: jobs[name] for name in mine if name not in records and name not in failed}
    outcomes = _here(todo, folder) if processes == 1 else _pooled(todo, folder, processes)
    for name, wrong in track(outcomes, "analysing", len(todo)):
        found = None if wrong else _done(jobs[name], folder / name)
        if found is None:
            failed[name] = _tell(jobs[name], wrong or "its record is gone")
        else:
            records[name] = found
    return {name: records[name] for name in jobs if name in records}, failed


def gather(
    jobs: Mapping[str, Job],
    folder: Path,
    *,
    with_report: bool,
    part: tuple[int, int] = (1, 1),
    processes: int = 1,
) -> None:
    """Run jobs (`run_all`), set all that are done side by side, and say which failed."""
    from ..analysis import Series
    from ..records import SERIES, claim
    from ..table import print_series

    claim(folder, SERIES)
    done, failed = run_all(jobs, folder, processes=processes, part=part)
    elsewhere = part[1] > 1 and len(done) + len(failed) < len(jobs)
    if len(done) > 1 and not elsewhere:
        series = Series.of(done, [folder / name for name in done])
        series.save(folder)
        print_series(series)
        if with_report:
            from .. import report as reports

            click.echo(f"Report: {reports.build(folder)}")
        click.echo(f"Record: {folder / 'series.json'}; each checkpoint's in {folder}/NAME")
    elif elsewhere:
        click.echo(f"{len(jobs) - len(done) - len(failed)} analyses are left to other parts.")
    if failed:
        raise WgeoError(
            f"{len(failed)} of {len(jobs)} checkpoints could not be analysed (see above); "
            "the others are kept."
        )


def named(targets: list[str], prefix: str = "", taken: tuple[str, ...] = ()) -> dict[str, str]:
    """A folder's name for each target: its stem, numbered where another has it already."""
    names = {"report": "", "figures": "", **dict.fromkeys(taken, "")}  # the series' own
    reserved = len(names)
    for target in targets:
        path = Path(target)
        stem = path.name if path.is_dir() else path.stem
        stem = f"{prefix}-{stem}" if prefix else stem
        tried = (stem if i == 1 else f"{stem}-{i}" for i in itertools.count(1))
        names[next(name for name in tried if name not in names)] = target
    return dict(list(names.items())[reserved:])


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
        checkpoints = ["runs/b/last.pt", "features/b"]
        tap = "pre"

    Every [[run]] takes what stands above for granted. Paths are seen from where the command runs.
    """
    from ..files import writable

    out, jobs = read_config(config)
    if len(jobs) < 2:
        raise ArgumentError(f"{config} names one checkpoint; `wgeo analyze` analyses one.")
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
        config = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ArgumentError(f"{path} cannot be read: {error}") from error
    runs = config.pop("run", [{}])
    out = config.pop("out", None)
    if not isinstance(out, str) or not isinstance(runs, list):
        raise ArgumentError(f'{path} must say out = "FOLDER", and its runs as [[run]].')
    jobs: dict[str, Job] = {}
    for run in runs:
        said = {**config, **run}
        prefix = str(said.pop("name", ""))
        targets = _found(said.pop("checkpoints", None), path)
        for name, target in named(targets, prefix, tuple(jobs)).items():
            jobs[name] = _job(target, said, path)
    return out, jobs


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
    from .analysis import analyze, job_of

    words = [target, "--out", "."]
    for key, value in said.items():
        if isinstance(value, bool):
            words += [f"--{key}"] if value else []
        else:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words += [f"--{key}", text]
    try:
        ctx = analyze.make_context("analyze", words)
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


def _tell(job: Job, error: str) -> str:
    click.echo(f"wgeo: {job.target}: {' '.join(error.split())}", err=True)
    return error


def _done(job: Job, folder: Path) -> dict[str, Any] | None:
    """The record of this very job, where it is there."""
    from ..records import read_record

    key = job.key
    try:
        record = read_record(folder)
    except RecordError:
        return None
    return record if record["provenance"].get("job") == key else None


def _run(job: Job, folder: Path, typed: str) -> str:
    """Do a job and save it; return what went wrong, in words."""
    from ..files import locked

    try:
        with locked(folder) as home:
            job.measure(typed).save(home)
    except (WgeoError, RuntimeError, OSError, MemoryError, ArithmeticError, ValueError) as error:
        return str(error) or type(error).__name__
    return ""


def _here(jobs: Mapping[str, Job], folder: Path) -> Iterator[tuple[str, str]]:
    """Run jobs one after the other in this process."""
    typed = as_typed()
    for name, job in jobs.items():
        yield name, _run(job, folder / name, typed)


def _pooled(jobs: Mapping[str, Job], folder: Path, processes: int) -> Iterator[tuple[str, str]]:
    """Run jobs, so many at once, each in a process that may die without the others."""
    context: Any = multiprocessing.get_context(CONTEXT)
    if CONTEXT == "forkserver":
        context.set_forkserver_preload(_PRELOAD)
    threads = max(1, (os.cpu_count() or 1) // processes)
    waiting, typed = list(jobs.items()), as_typed()
    running: dict[Any, tuple[str, Any]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                name, job = waiting.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                given = (theirs, job, folder / name, typed, threads)
                process = context.Process(target=_serve, args=given, daemon=True)
                process.start()
                theirs.close()
                running[ours] = (name, process)
            for ours in list[Any](connection.wait(list(running))):
                name, process = running.pop(ours)
                try:
                    error = ours.recv()
                except EOFError:
                    process.join()
                    error = (
                        f"its process ended with {process.exitcode} (-9: killed, most often for "
                        "want of memory; fewer --jobs need less)"
                    )
                process.join()
                yield name, error
    finally:
        for _, process in running.values():
            process.terminate()


def _serve(answer: Any, job: Job, folder: Path, typed: str, threads: int) -> None:
    """A job's process: ends with the process that began it."""
    import torch

    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()
    torch.set_num_threads(threads)
    answer.send(_run(job, folder, typed))


def _follow(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)

"""Many analyses: each in a folder of its own, done once, and set side by side."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from multiprocessing import connection
from pathlib import Path
from typing import Any

from ..errors import RecordError, WgeoError
from ..runtime.progress import track
from ..storage.files import folder_name, locked
from ..storage.ownership import leftovers, owned
from .job import Job
from .root import as_typed, main, say, with_flags

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

    Raises
    ------
    RecordError
        A job's folder holds files of someone else's under names of wgeo's; no job has begun.
    """
    from ..analysis.saving import claim

    failed: dict[str, str] = {}
    records: dict[str, dict[str, Any]] = {}
    for name, job in jobs.items():
        found, wrong = _looked(job, folder / name)
        if found is not None:
            records[name] = found
        elif wrong:
            failed[name] = _tell(job, wrong)
    if records:
        say(f"{len(records)} of {len(jobs)} analyses were done before.", err=True)
    mine = list(jobs)[part[0] - 1 :: part[1]]
    todo = {name: jobs[name] for name in mine if name not in records and name not in failed}
    for name in todo:
        claim(folder / name)
    for name in [name for name in mine if name in records]:
        if wrong := _completed(records[name], folder / name):
            failed[name] = _tell(jobs[name], wrong)
    outcomes = _here(todo, folder) if processes == 1 else _pooled(todo, folder, processes)
    for name, wrong in track(outcomes, "analysing", len(todo)):
        found, wrong = (None, wrong) if wrong else _looked(jobs[name], folder / name)
        if found is None:
            failed[name] = _tell(jobs[name], wrong or "its record is gone")
        else:
            records[name] = found
    for name in jobs:  # other parts went on meanwhile
        if name not in records and name not in failed:
            found, _ = _looked(jobs[name], folder / name)
            if found is not None:
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
    from ..analysis.saving import claim
    from ..storage.records import SERIES
    from .tables import print_series

    claim(folder, SERIES, with_report=with_report)
    done, failed = run_all(jobs, folder, processes=processes, part=part)
    elsewhere = part[1] > 1 and len(done) + len(failed) < len(jobs)
    if len(done) > 1 and not elsewhere:
        series = Series.of(done, [folder / name for name in done])
        with locked(folder):
            series.save(folder)
            print_series(series)
            if with_report:
                from .. import report as reports

                say(f"Report: {reports.build(folder)}")
        say(f"Record: {folder / 'series.json'}; each checkpoint's in {folder}/NAME")
    elif elsewhere:
        say(f"{len(jobs) - len(done) - len(failed)} analyses are left to other parts.")
    if failed:
        raise WgeoError(
            f"{len(failed)} of {len(jobs)} checkpoints could not be analysed (see above); "
            "the others are kept."
        )


_RESERVED = ("report", "figures", "report-build.log", "analysis.json", "series.json")


def named(targets: list[str], prefix: str = "", taken: tuple[str, ...] = ()) -> dict[str, str]:
    """A folder's name for each target: its stem, numbered if another has it already.

    Names that differ in case or in how their accents are composed are one name to some file
    systems, and so they are here.

    Parameters
    ----------
    targets : list of str
        Paths of checkpoints and of stored features.
    prefix : str
        Goes before each name.
    taken : tuple of str
        Names that others have.
    """
    names = dict.fromkeys((*_RESERVED, *taken), "")  # the series' own
    reserved = len(names)
    used = {_folded(name) for name in names}
    for target in targets:
        path = Path(os.path.abspath(target))  # "." and ".." have a name, too
        stem = folder_name(path.name if path.is_dir() else path.stem) or "network"
        stem = folder_name(f"{prefix}-{stem}" if prefix else stem)
        tried = (stem if i == 1 else f"{stem}-{i}" for i in itertools.count(1))
        name = next(name for name in tried if _folded(name) not in used)
        names[name] = target
        used.add(_folded(name))
    return dict(list(names.items())[reserved:])


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _tell(job: Job, error: str) -> str:
    told = with_flags(" ".join(error.split()), main.commands["analyze"])
    say(f"wgeo: {job.target}: {told}", err=True)
    return error


def _done(job: Job, folder: Path) -> dict[str, Any] | None:
    """The record of this very job, where it is there."""
    from ..storage.records import read_record

    key = job.key
    try:
        record = read_record(folder)
    except RecordError:
        return None
    return record if record["provenance"].get("job") == key else None


def _looked(job: Job, folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The record of this very job, where it is there, and what went wrong on the way, in words."""
    try:
        return _done(job, folder), ""
    except Exception as error:  # one odd checkpoint must not stop the others
        return None, _said(error)


def _completed(record: Mapping[str, Any], folder: Path) -> str:
    """Draw the figures that a run which was killed after the record did not come to.

    Returns what went wrong. A folder that another run writes into, or that nobody may, stays.
    """
    from .. import plots
    from ..plots.files import drawn
    from ..storage.records import ANALYSIS

    figures = folder / "figures"
    try:
        missing = drawn(record, figures, folder / ANALYSIS) is None
        if not (missing or leftovers(folder) or leftovers(figures)):
            return ""
        with ExitStack() as stack:
            for place in (folder, figures):
                try:
                    stack.enter_context(owned(place))
                except RecordError:
                    return ""
            if missing:
                plots.figures(record, figures)
    except Exception as error:  # as of `_looked`
        return _said(error)
    return ""


def _said(error: Exception) -> str:
    """What an error says; its kind too, where it was not made for people to read."""
    return str(error) if isinstance(error, WgeoError) else f"{type(error).__name__}: {error}"


def _run(job: Job, folder: Path, typed: str) -> str:
    """Do a job and save it; return what went wrong, in words."""
    try:
        with locked(folder) as home:
            if _done(job, home) is None:  # else another run did it before we had the folder
                job.measure(typed).save(home)
    except Exception as error:  # whatever a checkpoint makes a library raise
        return _said(error)
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to tell
    import torch

    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()
    torch.set_num_threads(threads)
    answer.send(_run(job, folder, typed))


def _follow(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)

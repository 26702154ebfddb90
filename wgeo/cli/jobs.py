"""Analyses as jobs: run one or several, each in its own folder, and compare them."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..analysis.plan import NETWORK_SETTINGS, AnalysisPlan, is_stored
from ..errors import ArgumentError, RecordError, WgeoError
from ..runtime.progress import track
from ..storage.files import folder_name, locked
from ..storage.ownership import has_leftovers, owned
from .root import as_typed, main, say, with_flags

if TYPE_CHECKING:
    from ..analysis import Analysis

_START_METHOD = "forkserver"  # the server imports libraries once, for the processes of all jobs
_PRELOAD = ["wgeo.analysis", "wgeo.cli.jobs"]


@dataclass(frozen=True, eq=False)
class Job:
    """The path of a checkpoint or of stored features (`target`), and a plan."""

    target: str
    plan: AnalysisPlan

    @classmethod
    def of(cls, target: str, given: Mapping[str, Any]) -> Job:
        """Build a job from the settings that were given explicitly.

        Raise an ArgumentError if a setting is invalid, if no images are given for a network, or if
        settings for networks are given for stored features.
        """
        stored = is_stored(target)
        if stored and (names := [f"`{name}=`" for name in NETWORK_SETTINGS if name in given]):
            raise ArgumentError(
                f"{target} holds stored features: {', '.join(names)} can only be given for a "
                "network."
            )
        if not stored and given.get("source") is None:
            raise ArgumentError("No images are given: add `source=`; see `wgeo list datasets`.")
        return cls(target, AnalysisPlan.of(**given))

    @cached_property
    def key(self) -> str:
        """The key of the plan for this target (`AnalysisPlan.key`)."""
        return self.plan.key(self.target)

    def measure(self, command: str, store: str | None = None) -> Analysis:
        """Run the analysis; the features of a network are stored in the folder `store`, if given.

        The result's provenance contains the key, by which a finished job is recognized.
        """
        from ..analysis.pipeline import analyze_features, analyze_network
        from ..runtime.memory import memory_limit
        from ..trajectory import Trajectory

        plan = self.plan
        about: dict[str, Any] = {"provenance": {"job": self.key}, "command": command}
        with memory_limit(plan.memory):
            if is_stored(self.target):
                return analyze_features(plan, Trajectory.load(self.target), **about)
            net = plan.loading.network(self.target)
            return analyze_network(plan, net, plan.images(), store=store, **about)


def run_all(
    jobs: Mapping[str, Job], folder: Path, *, processes: int = 1, part: tuple[int, int] = (1, 1)
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Run unfinished jobs, each in the subfolder with its name, and print failures.

    With ``part = (i, n)``, only every n-th job is run, from the i-th (1 to n).

    Returns
    -------
    done : dict of str to dict
        Records of all finished jobs, including those of earlier runs, in the order of `jobs`.
    failures : dict of str to str
        Error messages. A job whose figures could not be drawn is in `done` as well.

    Raises
    ------
    RecordError
        Files in a job's folder that wgeo did not write would be replaced; no job was run.
    """
    from ..analysis.saving import require_writable

    failures: dict[str, str] = {}
    records: dict[str, dict[str, Any]] = {}

    def read(name: str) -> str:
        """Add the record of a job to `records`, if it is finished; return an error message."""
        try:
            record = _record_of(jobs[name], folder / name)
        except Exception as error:  # one bad checkpoint must not stop the others
            return _message(error)
        if record is not None:
            records[name] = record
        return ""

    for name, job in jobs.items():
        if error := read(name):
            failures[name] = _report_failure(job, error)
    if records:
        say(f"{len(records)} of {len(jobs)} analyses were done before.", err=True)
    own = list(jobs)[part[0] - 1 :: part[1]]
    todo = {name: jobs[name] for name in own if name not in records and name not in failures}
    for name in todo:
        require_writable(folder / name)
    for name in own:
        if name in records and (error := _draw_missing(records[name], folder / name)):
            failures[name] = _report_failure(jobs[name], error)
    outcomes = _run_here(todo, folder) if processes == 1 else _run_pool(todo, folder, processes)
    for name, error in track(outcomes, "analyzing", len(todo)):
        unread = read(name)
        if error or name not in records:
            error = error or unread or "its record is missing"
            failures[name] = _report_failure(jobs[name], error)
    for name in jobs:  # other parts may have been run in the meantime
        if name not in records and name not in failures:
            read(name)
    return {name: records[name] for name in jobs if name in records}, failures


def gather(
    jobs: Mapping[str, Job],
    folder: Path,
    *,
    with_report: bool,
    part: tuple[int, int] = (1, 1),
    processes: int = 1,
) -> None:
    """Run jobs (`run_all`), and compare the analyses unless other parts are unfinished.

    Failures of jobs and of the comparison are raised as a single WgeoError, after everything else
    is saved.
    """
    from ..analysis import Series
    from ..analysis.saving import require_writable
    from ..storage.records import SERIES
    from .tables import print_series

    require_writable(folder, SERIES, with_report=with_report)
    records, failures = run_all(jobs, folder, processes=processes, part=part)
    failed = failures.keys() - records.keys()
    left = len(jobs) - len(records) - len(failed)
    unfinished = part[1] > 1 and left > 0
    errors = []
    if failed:
        errors.append(
            f"{len(failed)} of {len(jobs)} checkpoints could not be analyzed (see above); "
            "the other analyses are saved."
        )
    elif failures:
        errors.append(
            f"{len(failures)} of {len(jobs)} analyses are saved, but lack figures or other parts "
            "(see above)."
        )
    if len(records) > 1 and not unfinished:
        series = Series.of(records, [folder / name for name in records])
        try:
            with locked(folder):
                try:
                    series.save(folder)
                finally:
                    print_series(series)  # even if it could not be saved
                if with_report:
                    from .. import report as reports

                    say(f"Report: {reports.build(folder)}")
            say(f"Record: {folder / 'series.json'}; of each checkpoint: {folder}/NAME")
        except WgeoError as error:
            errors.append(str(error))
    elif unfinished:
        say(f"{left} analyses are left to other parts.")
    if errors:
        raise WgeoError(" ".join(errors))


_RESERVED = ("report", "figures", "report-build.log", "analysis.json", "series.json")
"""Names that wgeo uses in the folder of a series, which no folder of an analysis may have."""


def folder_names(
    targets: list[str], prefix: str = "", existing: tuple[str, ...] = ()
) -> dict[str, str]:
    """Return targets by folder name: prefix and stem, with a number if that name is in use.

    Some file systems do not distinguish upper and lower case, or composed and decomposed accents.
    Names that differ only in these therefore count as equal. Names in `existing` are in use.
    """
    names: dict[str, str] = {}
    keys = {_fold(name) for name in (*_RESERVED, *existing)}
    for target in targets:
        path = Path(os.path.abspath(target))  # gives "." and ".." a name
        stem = folder_name(path.name if path.is_dir() else path.stem) or "network"
        stem = folder_name(f"{prefix}-{stem}" if prefix else stem)
        candidates = (stem if i == 1 else f"{stem}-{i}" for i in itertools.count(1))
        name = next(name for name in candidates if _fold(name) not in keys)
        names[name] = target
        keys.add(_fold(name))
    return names


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _report_failure(job: Job, error: str) -> str:
    message = with_flags(" ".join(error.split()), main.commands["analyze"])
    say(f"wgeo: {job.target}: {message}", err=True)
    return error


def _record_of(job: Job, folder: Path) -> dict[str, Any] | None:
    """Return the record of a job, or None if the job is not finished."""
    from ..storage.records import read_record

    key = job.key
    try:
        record = read_record(folder)
    except RecordError:
        return None
    return record if record["provenance"].get("job") == key else None


def _draw_missing(record: Mapping[str, Any], folder: Path) -> str:
    """Draw figures that are missing because an earlier run was killed; return an error message.

    Folders that are locked or not writable are left unchanged.
    """
    from .. import plots
    from ..plots.files import current_files
    from ..storage.records import ANALYSIS

    figures = folder / "figures"
    try:
        missing = current_files(record, figures, folder / ANALYSIS) is None
        if not (missing or has_leftovers(folder) or has_leftovers(figures)):
            return ""
        with ExitStack() as stack:
            for each in (folder, figures):
                try:
                    stack.enter_context(owned(each))
                except RecordError:
                    return ""
            if missing:
                plots.figures(record, figures)
    except Exception as error:  # one bad record must not stop the others
        return _message(error)
    return ""


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, WgeoError) else f"{type(error).__name__}: {error}"


def _run(job: Job, folder: Path, command_line: str) -> str:
    """Run a job and save the analysis; return an error message, or ""."""
    try:
        with locked(folder):
            if _record_of(job, folder) is None:  # otherwise another run has finished the job
                job.measure(command_line).save(folder)
    except Exception as error:  # a checkpoint can make a library raise any error
        return _message(error)
    return ""


def _run_here(jobs: Mapping[str, Job], folder: Path) -> Iterator[tuple[str, str]]:
    command_line = as_typed()
    for name, job in jobs.items():
        yield name, _run(job, folder / name, command_line)


def _run_pool(jobs: Mapping[str, Job], folder: Path, processes: int) -> Iterator[tuple[str, str]]:
    """Run jobs in parallel, each in its own process, so that a crash does not affect the others."""
    context: Any = multiprocessing.get_context(_START_METHOD)
    context.set_forkserver_preload(_PRELOAD)
    threads = max(1, (os.cpu_count() or 1) // processes)
    waiting, command_line = list(jobs.items()), as_typed()
    running: dict[Any, tuple[str, Any]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                name, job = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                arguments = (sender, job, folder / name, command_line, threads)
                process = context.Process(target=_run_in_child, args=arguments, daemon=True)
                process.start()
                sender.close()
                running[receiver] = (name, process)
            for receiver in list[Any](connection.wait(list(running))):
                name, process = running.pop(receiver)
                try:
                    error = receiver.recv()
                except EOFError:
                    process.join()
                    error = (
                        f"its process ended with code {process.exitcode} (-9: killed, usually "
                        "because memory ran out; fewer --jobs need less)"
                    )
                process.join()
                yield name, error
    finally:
        for _, process in running.values():
            process.terminate()


def _run_in_child(sender: Any, job: Job, folder: Path, command_line: str, threads: int) -> None:
    """Run a job in a child process; the child ends when its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    import torch

    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_exit_with_parent, args=(parent.sentinel,), daemon=True).start()
    torch.set_num_threads(threads)
    sender.send(_run(job, folder, command_line))


def _exit_with_parent(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)

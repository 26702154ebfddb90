"""Files that wgeo did not write are never replaced; files that killed runs left are removed."""

from __future__ import annotations

import datetime
import os
import random
import shutil
import signal
import subprocess
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import sphinx.builders.html
import sphinx.cmd.build
import torch
from cases import save_stores
from click.testing import CliRunner
from matplotlib.figure import Figure
from records import sample_record

import wgeo
import wgeo.analysis
import wgeo.analysis.pipeline  # here, not anew in every forked process
import wgeo.report
from wgeo import Analysis
from wgeo.cli import main
from wgeo.cli.jobs import folder_names
from wgeo.errors import ArgumentError, RecordError, WgeoError
from wgeo.plots.files import catalog
from wgeo.plots.models import write_model
from wgeo.storage import files
from wgeo.storage.files import folder_name
from wgeo.storage.ownership import MANIFEST, owned, record_all, require_unchanged, require_writable

KILLS = int(os.environ.get("WGEO_KILLS", "2"))
MINE = b"a week of work\n"
NEW_YEAR = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
QUICK = ("--bootstrap", "0", "--reference", "none", "--no-mufm")


def run(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module", autouse=True)
def blank_figures():
    """All figures under their own names, but empty, since these tests are about files."""
    whole = catalog

    def blank(source):
        return [replace(plot, draw=lambda: Figure(figsize=(1, 1))) for plot in whole(source)]

    with pytest.MonkeyPatch.context() as patch:
        for module in ("wgeo.plots.files", "wgeo.report.pages", "wgeo.report"):
            patch.setattr(f"{module}.catalog", blank)
        yield


@pytest.fixture
def no_fsync(monkeypatch):
    """What a process has written outlives it: only a machine's end takes more."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def contents(folder):
    """Every file of a folder with its contents."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Stores of features, of 16 samples each."""
    return save_stores(tmp_path_factory.mktemp("features"), "ab")


# --- a folder's list -----------------------------------------------------------------------------


def test_only_listed_files_are_replaced(tmp_path):
    with owned(tmp_path) as home:
        home.write({"a": "1", "sub/b": b"2"})
    with owned(tmp_path) as home:
        home.write({"a": "3"})
        home.write({"a": "4"})
    assert (tmp_path / "a").read_text() == "4"
    (tmp_path / "a").write_text("changed")
    (tmp_path / "c").write_bytes(MINE)
    for name in ("a", "c"):
        kept = contents(tmp_path)
        said = rf"{tmp_path}/{name} is in the way.*Nothing was written.*choose another folder"
        with pytest.raises(RecordError, match=said):
            require_writable(tmp_path, name)
        with owned(tmp_path) as home, pytest.raises(RecordError, match=said):
            home.write({"sub/b": "5", name: "5"})
        assert contents(tmp_path) == kept
    with owned(tmp_path) as home:
        home.remove("a", "c", "sub/b", "never")
    assert sorted(contents(tmp_path)) == [MANIFEST, "a", "c"]


def test_file_changed_during_writing_is_detected(tmp_path):
    with owned(tmp_path) as home:
        home.write({"a": "1"})
        (tmp_path / "a").write_bytes(MINE)
        with pytest.raises(RecordError, match="in the way"):
            home.write({"a": "2"})
    assert (tmp_path / "a").read_bytes() == MINE


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "dangling", "file for a folder"])
def test_links_folders_and_pipes_block_writing(tmp_path, kind):
    place = tmp_path / "run" / ("sub" if kind == "file for a folder" else "sub/a")
    place.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").write_bytes(MINE)
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "file for a folder":
        place.write_bytes(MINE)
    else:
        place.symlink_to(tmp_path / ("elsewhere" if kind == "link" else "nowhere"))
    with pytest.raises(RecordError, match="in the way"):
        require_writable(tmp_path / "run", "sub/a")
    with owned(tmp_path / "run") as home, pytest.raises(RecordError, match="in the way"):
        home.write({"sub/a": "new"})
    assert os.path.lexists(place)
    assert (tmp_path / "elsewhere").read_bytes() == MINE


def test_new_folder_must_not_exist_yet(tmp_path):
    require_writable(tmp_path / "x" / "y", "a", "*.pt")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_bytes(MINE)
    with pytest.raises(RecordError, match="file is in the way"):
        require_writable(tmp_path / "file" / "y", "a")


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "mine", '{"files": {}}', '{"files": [], "scratch": []}'),
        *('{"files": {"../x": []}, "scratch": []}', '{"files": {"/x": []}, "scratch": []}'),
        *('{"files": {"": []}, "scratch": []}', '{"files": {"a": 1}, "scratch": []}'),
        *('{"files": {}, "scratch": ["../x"]}', '{"files": {}, "scratch": [".git"]}'),
        *('{"files": {}, "scratch": [1]}', "[" * 100_000),
    ],
)
def test_invalid_list_is_refused_and_left_unchanged(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    for attempt in (
        lambda: require_writable(tmp_path, MANIFEST),
        lambda: owned(tmp_path).__enter__(),
    ):
        with pytest.raises(RecordError, match=r"\.wgeo\.json is in the way"):
            attempt()
    assert (tmp_path / MANIFEST).read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_folder_is_compared_with_its_list(tmp_path):
    folder = tmp_path / "report"
    (folder / "html").mkdir(parents=True)
    (folder / "html" / "index.html").write_text("page")
    record_all(folder)
    require_unchanged(folder)
    (folder / ".DS_Store").write_text("whatever a file manager leaves")
    require_unchanged(folder)
    (folder / "html" / "thesis.tex").write_bytes(MINE)
    with pytest.raises(RecordError, match=r"thesis\.tex is in the way"):
        require_unchanged(folder)
    (folder / "html" / "thesis.tex").unlink()
    (folder / "html" / "link").symlink_to(tmp_path)
    with pytest.raises(RecordError, match="link is in the way"):
        require_unchanged(folder)
    (tmp_path / "to").symlink_to(folder)
    with pytest.raises(RecordError, match="to is in the way"):
        require_unchanged(tmp_path / "to")


def test_users_file_in_place_of_the_lock_is_kept(tmp_path):
    (tmp_path / ".wgeo.lock").write_bytes(MINE)
    with pytest.raises(RecordError, match="not a lock file"), owned(tmp_path):
        pass
    assert contents(tmp_path) == {".wgeo.lock": MINE}


CALLS = ("replace", "unlink", "mkdir", "rmdir")


def killed_at(moment, work):
    """Do some work in a process that ends, without a chance to tidy up, at its n-th system call."""
    child = os.fork()
    if child == 0:
        left = [moment]

        def guard(call):
            def guarded(*args, **named):
                if left[0] == 0:
                    os._exit(9)
                left[0] -= 1
                return call(*args, **named)

            return guarded

        files.os.fsync = guard(os.fsync)
        for name in CALLS:
            setattr(Path, name, guard(getattr(Path, name)))
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.usefixtures("no_fsync")
def test_run_killed_at_any_call_leaves_files_known_to_the_next(tmp_path):
    def work(folder, text):
        with owned(folder) as home:
            home.write({"a": text, "sub/b": text})
            with home.scratch("report") as scratch:
                (scratch / "c").write_text(text)
            home.write({"a": text * 2})
            home.remove("sub/b")
            home.write({"d": text})

    work(tmp_path / "whole", "second")
    for moment in range(100):
        folder = tmp_path / str(moment)
        (folder / "sub").mkdir(parents=True)
        mine = (".mine.part", ".a.part", "sub/.b.1-2.part", ".report-1", "sub/mine")
        for name in mine:
            (folder / name).write_bytes(MINE)
        work(folder, "first")
        code = killed_at(moment, lambda folder=folder: work(folder, "second"))
        require_writable(folder, "a", "sub/b", "d")
        work(folder, "second")
        left = contents(folder)
        assert all(left.pop(name) == MINE for name in mine)
        assert left == contents(tmp_path / "whole")
        if code == 0:
            break
    assert 20 < moment < 99


@pytest.mark.usefixtures("no_fsync")
def test_failing_report_killed_at_any_call_leaves_a_log_known_to_the_next(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, b"WARNING: a page is wrong")
    monkeypatch.setattr("wgeo.report.building._run", lambda *_, **__: failed)
    monkeypatch.setattr("wgeo.report._write_project", lambda *inputs: inputs[2].mkdir())
    monkeypatch.setattr("wgeo.report.pages.pages", lambda _: {})
    Analysis(sample_record((2,))).save(tmp_path / "saved")

    def work(folder):
        with pytest.raises(WgeoError, match=r"a page is wrong.*report-build\.log"):
            wgeo.report.build(folder)

    for moment in range(150):
        folder = shutil.copytree(tmp_path / "saved", tmp_path / str(moment))
        code = killed_at(moment, lambda folder=folder: work(folder))
        wgeo.report.require_report_writable(folder)
        if code == 0:
            break
    assert 10 < moment < 149
    assert (folder / "report-build.log").read_bytes() == failed.stdout


# --- every command -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(features, tmp_path_factory):
    """What every command writes into an empty folder: its words, and the files' names."""
    home = tmp_path_factory.mktemp("made")
    train = ("train", "--arch", "mlp", "--dataset", "digits", "--samples", "40", "--epochs", "1")
    stores = [features / name for name in "ab"]
    (home / "template").write_text(
        'out = "{OUT}"\nbootstrap = 0\nreference = "none"\nmufm = false\n'
        f'checkpoints = "{features}/[ab]"\n'
    )
    small = ("--classes", "2", "--per-class", "2")
    commands = {
        "train": (*train, "--out", "{OUT}"),
        "analyze": ("analyze", stores[0], *QUICK, "--out", "{OUT}"),
        "several": ("analyze", *stores, *QUICK, "--out", "{OUT}"),
        "sweep": ("sweep", "{TOML}"),
        "ufm-ce": ("ufm", "ce", *small, "--out", "{OUT}"),
        "ufm-mse": ("ufm", "mse", *small, "--out", "{OUT}"),
        "ufm-deep": ("ufm", "deep", *small, "--out", "{OUT}"),
        "report": ("report", "{OUT}"),
        "reports": ("report", home / "analyze", home / "report", "--out", "{OUT}"),
    }
    names = {}
    for name, words in commands.items():
        out = home / name
        if name == "report":
            out.mkdir()
            shutil.copyfile(home / "analyze" / "analysis.json", out / "analysis.json")
        with pytest.MonkeyPatch.context() as patch:
            if name != "analyze":  # all reports are of the same files, and Sphinx takes its time
                patch.setattr("wgeo.report.building.html", few_pages)
            run(*filled(words, out, home))
        names[name] = set(contents(out)) | {".wgeo.lock"}
        names[name] |= {"figures/.wgeo.lock"} if (out / "figures").is_dir() else set()
    names["report"] -= {"analysis.json"}
    names["demo"] = names["train"] | names["analyze"]
    commands["demo"] = ("demo", "--epochs", "1", "--out", "{OUT}")
    words = ("trace", home / "train" / "checkpoints" / "epoch-0001.pt", "--data", "digits")
    commands["trace"] = (*words, "--samples", "40", "--store", "{OUT}")
    run(*filled(commands["trace"], home / "trace", home))
    names["trace"] = set(contents(home / "trace"))
    return home, commands, names


def few_pages(project, _):
    (project / "html").mkdir()
    (project / "html" / "index.html").write_text("page")


def filled(words, out, home):
    toml = out.with_suffix(".toml")
    toml.write_text((home / "template").read_text().replace("{OUT}", str(out)))
    return [str(word).replace("{OUT}", str(out)).replace("{TOML}", str(toml)) for word in words]


COMMANDS = (
    *("train", "demo", "analyze", "several", "sweep", "report", "reports", "trace"),
    *("ufm-ce", "ufm-mse", "ufm-deep"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_changes_a_users_file(made, tmp_path, command, monkeypatch):
    home, commands, names = made

    def work(*_, **__):
        raise AssertionError("it was to be refused before any work")

    monkeypatch.setattr("wgeo.training.job.Job.train", work)
    monkeypatch.setattr("wgeo.cli.jobs.Job.measure", work)
    monkeypatch.setattr("wgeo.report.building.html", work)
    assert len(names[command]) > 3
    for i, name in enumerate(sorted(names[command])):
        out = tmp_path / str(i)
        (out / name).parent.mkdir(parents=True)
        (out / name).write_bytes(MINE)
        if command == "report":
            shutil.copyfile(home / "analyze" / "analysis.json", out / "analysis.json")
        before = contents(out)
        said = run(*filled(commands[command], out, home), code=2)
        assert name.split("/")[0] in said, (name, said)
        assert contents(out) == before, name


# --- trainings -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return wgeo.load_images("digits", limit=40)


def trained(images, out, epochs=2, **settings):
    fixed = {"schedule": "constant", "checkpoints": "all", "options": {"width": 4, "depth": 2}}
    return wgeo.train("isoresnet", images, out, epochs=epochs, device="cpu", **fixed, **settings)


@pytest.mark.parametrize("name", ["epoch-0001.pt", "epoch-0999.pt", "epoch-best.pt"])
@pytest.mark.parametrize("resume", [True, False])
def test_users_checkpoints_are_not_mixed_with_those_of_a_run(digits, tmp_path, name, resume):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / name).write_bytes(MINE)
    with pytest.raises(RecordError, match=rf"{name} is in the way"):
        trained(digits, tmp_path, resume=resume)
    assert contents(tmp_path) == {f"checkpoints/{name}": MINE}


def test_run_without_its_last_state_is_kept_unless_resume_is_false(digits, tmp_path):
    trained(digits, tmp_path)
    (tmp_path / "last.pt").unlink()
    before = contents(tmp_path)
    with pytest.raises(RecordError, match=r"last\.pt, needed to resume it, is miss.*resume=False"):
        trained(digits, tmp_path, seed=1)
    assert contents(tmp_path) == before
    (tmp_path / "checkpoints" / "epoch-0001.pt").write_bytes(MINE)
    with pytest.raises(RecordError, match=r"epoch-0001\.pt is in the way"):
        trained(digits, tmp_path, seed=1, resume=False)
    (tmp_path / "checkpoints" / "epoch-0001.pt").unlink()
    run = trained(digits, tmp_path, epochs=1, seed=1, resume=False)
    assert [path.name for path in run.checkpoints] == ["epoch-0000.pt", "epoch-0001.pt"]


def test_run_of_version_0_1_continues(digits, tmp_path):
    whole = trained(digits, tmp_path / "whole", epochs=3)
    trained(digits, tmp_path / "old", epochs=2)
    (tmp_path / "old" / MANIFEST).unlink()
    # Killed after a checkpoint was written and before last.pt was:
    ahead = tmp_path / "old" / "checkpoints" / "epoch-0003.pt"
    shutil.copyfile(whole.last, ahead)
    run = trained(digits, tmp_path / "old", epochs=3)
    assert len(run.checkpoints) == 4
    for mine, other in zip(run.checkpoints, whole.checkpoints, strict=True):
        weights, same = (torch.load(path)["state_dict"] for path in (mine, other))
        assert all(torch.equal(weights[key], same[key]) for key in same)
    (tmp_path / "old" / MANIFEST).unlink()
    (tmp_path / "old" / "checkpoints" / "epoch-0004.pt").write_bytes(MINE)
    with pytest.raises(RecordError, match=r"epoch-0004\.pt is in the way"):
        trained(digits, tmp_path / "old", epochs=4)


def test_training_continues_from_a_restored_earlier_state(digits, tmp_path):
    trained(digits, tmp_path, epochs=1)
    earlier = (tmp_path / "last.pt").read_bytes()
    trained(digits, tmp_path, epochs=3)
    after = contents(tmp_path / "checkpoints")
    (tmp_path / "last.pt").write_bytes(earlier)
    trained(digits, tmp_path, epochs=3)
    assert contents(tmp_path / "checkpoints") == after


@pytest.mark.parametrize("listed", [True, False])
def test_edited_files_of_a_run_are_not_overwritten(digits, tmp_path, listed):
    trained(digits, tmp_path, epochs=1)
    if not listed:  # as after `cp -r run/* copy`
        (tmp_path / MANIFEST).unlink()
    history, last = tmp_path / "history.json", tmp_path / "last.pt"
    whole = history.read_text()
    for edited in (
        whole.replace("{", '{"notes": "mine",', 1),
        whole.replace('"lr": null', '"lr": 7'),
    ):
        assert edited != whole
        history.write_text(edited)
        with pytest.raises(RecordError, match=r"history\.json is in the way"):
            trained(digits, tmp_path, epochs=1)
        assert history.read_text() == edited
    history.write_text(whole)
    torch.save({**torch.load(last), "notes": "mine"}, last)
    kept = last.read_bytes()
    with pytest.raises(RecordError, match=r"last\.pt cannot be resumed from.*'notes'"):
        trained(digits, tmp_path, epochs=1)
    assert last.read_bytes() == kept


def test_pipe_in_place_of_the_last_state_does_not_block(digits, tmp_path):
    os.mkfifo(tmp_path / "last.pt")
    with pytest.raises(RecordError, match=r"last\.pt cannot be resumed from.*regular file"):
        trained(digits, tmp_path)


# --- the record first ----------------------------------------------------------------------------


def full(*_, **__):
    raise RecordError("Cannot write figures: No space left on device.")


def test_record_is_complete_before_figures_are_drawn(tmp_path, monkeypatch):
    record = sample_record((2,))
    with monkeypatch.context() as patch:
        patch.setattr("wgeo.plots.figures", full)
        with pytest.raises(RecordError, match=r"is complete.*No space left.*`wgeo report"):
            Analysis(record).save(tmp_path)
    assert Analysis.load(tmp_path).record == record
    wgeo.report.build(tmp_path, html=False)
    assert (tmp_path / "figures" / "collapse.svg").exists()


def test_full_disk_during_drawing_is_reported(features, tmp_path, monkeypatch):
    places = [features / name for name in "ab"]
    with monkeypatch.context() as patch:
        patch.setattr("wgeo.plots.figures", full)
        words = ("analyze", features / "a", "--out", tmp_path / "one", *QUICK)
        said = run(*words, code=2)
        assert "W2" in said  # the table of what was measured
        assert "is complete" in said
        several = ("analyze", *places, "--out", tmp_path / "two", *QUICK, "--no-report")
        assert "draws them once that is fixed" in run(*several, code=2)
    assert (tmp_path / "one" / "analysis.json").exists()
    assert (tmp_path / "two" / "a" / "analysis.json").exists()
    assert "2 of 2 analyses were done before" in run(*several)
    assert (tmp_path / "two" / "a" / "figures" / "collapse.svg").exists()


# --- killed --------------------------------------------------------------------------------------


def begun(words, folder):
    """A process that runs a command in a folder; all of its clocks stand still."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.setsid()
            os.chdir(folder)
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            time.perf_counter = lambda: 0.0
            wgeo.analysis.pipeline.datetime = SimpleNamespace(
                UTC=datetime.UTC, datetime=SimpleNamespace(now=lambda _: NEW_YEAR)
            )
            main([str(word) for word in words])
        except SystemExit as leave:
            code = int(leave.code or 0)
        finally:
            os._exit(code)
    return child


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture(scope="module")
def imported(features, tmp_path_factory):
    """All that a command imports, before processes are forked: it takes longer than the command."""
    run("analyze", features / "a", "--out", tmp_path_factory.mktemp("first"), *QUICK, "--no-report")


def forked(command, cwd):
    """Sphinx as `building._run` starts it, in a process that need not import it."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.chdir(cwd)
            warnings.simplefilter("ignore")  # as a new process has it, not as pytest does
            code = sphinx.cmd.build.main(command[command.index("sphinx") + 1 :])
        finally:
            os._exit(code)
    return subprocess.CompletedProcess(command, ended(child), b"")


@pytest.mark.usefixtures("imported", "no_fsync")
@pytest.mark.parametrize("command", ["analyze", "report", "sweep"])
def test_command_killed_at_any_moment_completes_when_repeated(
    features, tmp_path, command, monkeypatch
):
    torch.set_num_threads(1)
    monkeypatch.setattr("wgeo.report.building._run", forked)
    words = {
        "analyze": ("analyze", "../a", *QUICK, "--no-report", "--out", "out"),
        "report": ("report", "out"),
        "sweep": ("sweep", "../sweep.toml", "--no-report"),
    }[command]
    for name in "ab":
        shutil.copytree(features / name, tmp_path / name)
    (tmp_path / "sweep.toml").write_text(
        'out = "out"\nbootstrap = 0\nreference = "none"\nmufm = false\ncheckpoints = "../[ab]"\n'
    )

    def fresh(name):
        (tmp_path / name / "out").mkdir(parents=True)
        if command == "report":
            Analysis(sample_record((2,))).save(tmp_path / name / "out")
            shutil.rmtree(tmp_path / name / "out" / "figures")  # to be drawn anew
        return tmp_path / name

    whole = fresh("whole")
    started = time.monotonic()
    assert ended(begun(words, whole)) == 0
    taken = time.monotonic() - started
    expected = contents(whole)
    rng, partly = random.Random(0), 0
    for kill in range(KILLS):
        folder = fresh(f"killed{kill}")
        child = begun(words, folder)
        time.sleep(taken * (kill + rng.random()) / KILLS)
        os.killpg(child, signal.SIGKILL)
        partly += ended(child) == -signal.SIGKILL
        assert ended(begun(words, folder)) == 0
        assert contents(folder) == expected
    assert partly >= KILLS // 3


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *(("net", "net"), ("..", ""), (".wgeo.lock", "wgeo.lock"), ("a/b\\c", "a-b-c")),
        *(("x\ny\x00\x1b[31m", "x-y--[31m"), ("", ""), ("né", "né"), ("n" * 250, "n" * 200)),
        *(("é" * 250, "é" * 100), ("../../escaped", "-..-escaped"), ("\udcff", "-")),
    ],
)
def test_text_is_converted_to_a_folder_name(text, name):
    assert folder_name(text) == name
    assert folder_name(name) == name


def test_every_target_has_a_separate_folder_inside_out(tmp_path, monkeypatch):
    (tmp_path / "s1" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "s1" / "sub")
    targets = ["..", ".", "../..", "...pt", "series.json.pt", ".wgeo.lock.pt", "x\ny.pt", "/"]
    targets += ["figures.pt", "analysis.json.pt", "report.pt", f"{'n' * 250}.pt", f"{'n' * 251}.pt"]
    names = list(folder_names(targets))
    assert names[:4] == ["s1", "sub", folder_name(tmp_path.name), "network"]
    assert names[4:8] == ["series.json-2", "wgeo.lock", "x-y", "network-2"]
    assert names[8:11] == ["figures-2", "analysis.json-2", "report-2"]
    assert names[11:] == ["n" * 200, "n" * 200 + "-2"]
    assert all(Path(name).name == name and not name.startswith(".") for name in names)


def test_names_equal_to_a_file_system_are_numbered():
    targets = [
        "Net.pt",
        "net.pt",
        "Report.pt",
        "caf\u00e9.pt",
        "cafe\u0301.pt",
        "stra\u00dfe",
        "STRASSE",
    ]
    names = list(folder_names(targets, existing=("FIGURE", "X")))
    assert names == [
        *("Net", "net-2", "Report-2", "caf\u00e9", "cafe\u0301-2", "stra\u00dfe", "STRASSE-2")
    ]
    assert list(folder_names(["x.pt"], existing=("X",))) == ["x-2"]


@pytest.mark.parametrize("name", ['"../../escaped"', '"a/b"', '"."', '"a\\nb"', '["a"]', "3"])
def test_a_sweeps_name_that_leads_out_of_it_is_refused(features, tmp_path, name):
    (tmp_path / "sweep.toml").write_text(
        f'out = "{tmp_path}/x/y/out"\n[[run]]\nname = {name}\ncheckpoints = "{features}/[ab]"\n'
    )
    assert "cannot be the name of a folder" in run("sweep", tmp_path / "sweep.toml", code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.toml"]


def test_checkpoints_with_unusual_names_stay_inside_out(features, tmp_path, monkeypatch):
    shutil.copytree(features / "a", tmp_path / "in" / "s1")
    monkeypatch.chdir(tmp_path / "in" / "s1")
    out = tmp_path / "deep" / "out"
    run("analyze", ".", features / "b", *QUICK, "--no-report", "--out", out)
    assert sorted(path.name for path in out.glob("*/analysis.json")) == ["analysis.json"] * 2
    assert {path.parent.name for path in out.glob("*/analysis.json")} == {"s1", "b"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_figure_of_a_model_has_a_plain_name(tmp_path):
    for stem in ("../x", "", "a/b", ".."):
        with pytest.raises(ArgumentError, match="plain file name"):
            write_model({}, tmp_path / "in", stem)
    assert not list(tmp_path.iterdir())

"""What wgeo did not write is never replaced or removed, and what kills left behind is."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from records import sample_record

import wgeo
import wgeo.analysis
import wgeo.analysis.order  # here, not anew in every forked process
import wgeo.report
from wgeo import Analysis, Trajectory, files, plots
from wgeo.cli import main
from wgeo.cli.gathering import named
from wgeo.errors import ArgumentError, RecordError
from wgeo.files import folder_name
from wgeo.ownership import MANIFEST, claim, claim_all, list_all, owned
from wgeo.plots.models import write_model

KILLS = int(os.environ.get("WGEO_KILLS", "3"))
MINE = b"a week of work\n"
QUICK = ("--bootstrap", "0", "--reference", "none", "--no-mufm")


def run(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def contents(folder):
    """Every file of a folder, and what it holds."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Stores of features, of 16 samples each."""
    home = tmp_path_factory.mktemp("features")
    rng = np.random.default_rng(0)
    for name in "abc":
        first = rng.normal(size=(16, 3))
        arrays = [first, 0.5 * first + rng.normal(size=3)]
        Trajectory.from_arrays(arrays, np.arange(16) % 2).save(home / name)
    return home


# --- a folder's list -----------------------------------------------------------------------------


def test_what_is_listed_is_replaced_and_nothing_else(tmp_path):
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
        said = rf"{tmp_path}/{name} is in the way.*Nothing was done.*choose another folder"
        with pytest.raises(RecordError, match=said):
            claim(tmp_path, name)
        with owned(tmp_path) as home, pytest.raises(RecordError, match=said):
            home.write({"sub/b": "5", name: "5"})
        assert contents(tmp_path) == kept
    with owned(tmp_path) as home:
        home.remove("a", "c", "sub/b", "never")
    assert sorted(contents(tmp_path)) == [MANIFEST, "a", "c"]


def test_a_file_changed_while_the_folder_is_written_is_noticed(tmp_path):
    with owned(tmp_path) as home:
        home.write({"a": "1"})
        (tmp_path / "a").write_bytes(MINE)
        with pytest.raises(RecordError, match="in the way"):
            home.write({"a": "2"})
    assert (tmp_path / "a").read_bytes() == MINE


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "dangling", "file for a folder"])
def test_what_is_no_file_is_in_the_way(tmp_path, kind):
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
        claim(tmp_path / "run", "sub/a")
    with owned(tmp_path / "run") as home, pytest.raises(RecordError, match="in the way"):
        home.write({"sub/a": "new"})
    assert os.path.lexists(place)
    assert (tmp_path / "elsewhere").read_bytes() == MINE


def test_a_folder_that_is_to_be_made_may_not_be_there_yet(tmp_path):
    claim(tmp_path / "x" / "y", "a", "*.pt")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_bytes(MINE)
    with pytest.raises(RecordError, match="file is in the way"):
        claim(tmp_path / "file" / "y", "a")


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
def test_a_list_that_is_none_is_refused_and_left(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    for attempt in (lambda: claim(tmp_path, MANIFEST), lambda: owned(tmp_path).__enter__()):
        with pytest.raises(RecordError, match=r"\.wgeo\.json is in the way"):
            attempt()
    assert (tmp_path / MANIFEST).read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_a_whole_folder_is_as_it_was_listed(tmp_path):
    folder = tmp_path / "report"
    (folder / "html").mkdir(parents=True)
    (folder / "html" / "index.html").write_text("page")
    list_all(folder)
    claim_all(folder)
    (folder / ".DS_Store").write_text("whatever a file manager leaves")
    claim_all(folder)
    (folder / "html" / "thesis.tex").write_bytes(MINE)
    with pytest.raises(RecordError, match=r"thesis\.tex is in the way"):
        claim_all(folder)
    (folder / "html" / "thesis.tex").unlink()
    (folder / "html" / "link").symlink_to(tmp_path)
    with pytest.raises(RecordError, match="link is in the way"):
        claim_all(folder)
    (tmp_path / "to").symlink_to(folder)
    with pytest.raises(RecordError, match="to is in the way"):
        claim_all(tmp_path / "to")


def test_a_users_file_in_the_locks_place_is_kept(tmp_path):
    (tmp_path / ".wgeo.lock").write_bytes(MINE)
    with pytest.raises(RecordError, match="not the lock of a run"), owned(tmp_path):
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


def test_whenever_a_run_is_killed_the_next_knows_its_files(tmp_path):
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
        claim(folder, "a", "sub/b", "d")
        work(folder, "second")
        left = contents(folder)
        assert all(left.pop(name) == MINE for name in mine)
        assert left == contents(tmp_path / "whole")
        if code == 0:
            break
    assert 20 < moment < 99


# --- every command -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(features, tmp_path_factory):
    """What every command writes into an empty folder: its words, and the files' names."""
    home = tmp_path_factory.mktemp("made")
    train = ("train", "--arch", "mlp", "--dataset", "digits", "--samples", "40", "--epochs", "1")
    stores = [features / name for name in "ab"]
    (home / "sweep.toml").write_text(
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
        run(*filled(words, out, home))
        names[name] = set(contents(out)) | {".wgeo.lock"}
    names["report"] -= {"analysis.json"}
    names["demo"] = names["train"] | names["analyze"]
    commands["demo"] = ("demo", "--epochs", "1", "--out", "{OUT}")
    words = ("trace", home / "train" / "checkpoints" / "epoch-0001.pt", "--data", "digits")
    commands["trace"] = (*words, "--samples", "40", "--store", "{OUT}")
    run(*filled(commands["trace"], home / "trace", home))
    names["trace"] = set(contents(home / "trace"))
    return home, commands, names


def filled(words, out, home):
    toml = out.with_suffix(".toml")
    toml.write_text((home / "sweep.toml").read_text().replace("{OUT}", str(out)))
    return [str(word).replace("{OUT}", str(out)).replace("{TOML}", str(toml)) for word in words]


COMMANDS = (
    *("train", "demo", "analyze", "several", "sweep", "report", "reports", "trace"),
    *("ufm-ce", "ufm-mse", "ufm-deep"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_changes_a_file_of_the_users(made, tmp_path, command, monkeypatch):
    home, commands, names = made

    def work(*_, **__):
        raise AssertionError("it was to be refused before any work")

    monkeypatch.setattr("wgeo.training.job.Job.work", work)
    monkeypatch.setattr("wgeo.analysis.order.geodesic", work, raising=False)
    monkeypatch.setattr("wgeo.cli.job.Job.measure", work)
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

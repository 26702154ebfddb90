"""Commands stopped at any moment leave no partial files; two runs never share a folder."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import patience
import pytest
import stopped
import torch
from click.testing import CliRunner
from records import sample_record

import wgeo
from wgeo.cli import main
from wgeo.cli.root import STOPPED, command
from wgeo.errors import RecordError, WgeoError, WgeoWarning
from wgeo.runtime.terminal import Terminal
from wgeo.storage import files
from wgeo.storage.files import locked, write_atomic
from wgeo.storage.ownership import MANIFEST
from wgeo.storage.records import read_record, write_record

SCRIPT = Path(stopped.__file__)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1]), "OMP_NUM_THREADS": "1"}


def stop(folder, number, moments, *words):
    """Run the command line several times, stopping each at another moment."""
    line = [sys.executable, SCRIPT, folder, str(int(number)), *map(str, moments), "--", *words]
    done = patience.run(line, env=ENVIRONMENT, stdout=subprocess.PIPE, check=True)
    return [json.loads(row) for row in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (
            signal.SIGINT,
            ("train", "--arch", "mlp", "--dataset", "digits", "--samples", "60", "--epochs", "400"),
        ),
        (
            signal.SIGTERM,
            (
                "analyze",
                "{tmp}/net.pt",
                "--data",
                "digits",
                "--samples",
                "200",
                "--bootstrap",
                "200",
            ),
        ),
    ],
    ids=["train", "analyze"],
)
def test_a_stopped_run_leaves_nothing_half_written(tmp_path, number, words):
    net = wgeo.models.build("isoresnet", num_classes=10, in_channels=1, width=6, depth=3)
    meta = {"arch": "isoresnet", "normalize": "digits"}
    torch.save({"state_dict": net.state_dict(), "wgeo": meta}, tmp_path / "net.pt")
    moments = (0.2, 0.6, 1.2, 2.2)
    rows = stop(tmp_path, number, moments, *words, "--out", "{out}")
    assert len(rows) == len(moments)
    codes = {row["code"] for row in rows}
    # Before the command line has begun, a signal does what it does to any program.
    assert codes <= {0, 128 + number, -number}, rows
    assert 128 + number in codes, rows
    for row in rows:
        if row["code"] == 128 + number:
            lines = row["said"].strip().splitlines()
            assert lines[-1] == STOPPED
            assert "Traceback" not in row["said"]
            check_folder(Path(row["out"]))


def check_folder(out):
    left = [path.name for path in out.rglob("*")]
    hidden = [name for name in left if name.startswith(".") and name != MANIFEST]
    assert not hidden, hidden
    for path in out.rglob("*.json"):
        json.loads(path.read_text())
    for path in (*out.rglob("*.pt"),):
        torch.load(path, weights_only=True)
    if (out / "analysis.json").exists():
        read_record(out)


class Stop(KeyboardInterrupt):
    pass


class Trap:
    """Raises at the n-th of the system calls that writing a file takes."""

    CALLS = ("replace", "open", "fsync", "unlink")

    def __init__(self, monkeypatch, error, when):
        self.left, self.error = when, error
        monkeypatch.setattr(files.os, "fsync", self.guard(os.fsync))
        for name in ("replace", "unlink"):
            monkeypatch.setattr(Path, name, self.guard(getattr(Path, name)))
        monkeypatch.setattr(files, "open", self.guard(open), raising=False)

    def guard(self, call):
        def guarded(*args, **named):
            if self.left == 0:
                self.left = -1
                raise self.error
            self.left -= 1
            return call(*args, **named)

        return guarded


@pytest.mark.parametrize("error", [Stop(), OSError(28, "No space left on device"), MemoryError()])
@pytest.mark.parametrize("when", range(5))
@pytest.mark.parametrize("before", [None, 1])
def test_record_is_the_old_or_the_new_after_any_failure(tmp_path, error, when, before):
    new, old = sample_record((2,)), sample_record((3,))
    if before:
        write_record(tmp_path, old)
    with pytest.MonkeyPatch.context() as patch:
        Trap(patch, error, when)
        try:
            write_record(tmp_path, new)
        except (Stop, RecordError, OSError, MemoryError) as raised:
            failed = raised
        else:
            failed = None
    assert failed is not None or when == 4
    found = read_record(tmp_path) if (tmp_path / "analysis.json").exists() else None
    assert found in ((old if before else None), new)
    # What cannot be taken away (its `unlink` failed) is hidden, and nobody reads it.
    left = {path.name for path in tmp_path.iterdir()} - {"analysis.json"}
    assert all(name.startswith(".") for name in left)


def test_files_are_not_written_through_links(tmp_path):
    (tmp_path / "secret").write_text("kept")
    for name in ("a.json.part", ".a.json.part"):
        (tmp_path / name).symlink_to(tmp_path / "secret")
    write_atomic(tmp_path / "a.json", "new")
    assert (tmp_path / "secret").read_text() == "kept"
    assert (tmp_path / "a.json").read_text() == "new"
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o666 & ~umask()


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


# --- one run a folder ----------------------------------------------------------------------------

HOLD = """
import sys, time
from wgeo.storage.files import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that writes into a folder."""
    line = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(line, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_folder_of_a_live_run_is_refused_and_free_after_a_crash(tmp_path, holder):
    folder = tmp_path / "run"
    said = rf"Another run \(process {holder.pid}\) is writing to .*another folder"
    with pytest.raises(RecordError, match=said), locked(folder):
        pass
    for words in (["train", "--arch", "mlp"], ["analyze", __file__], ["ufm", "mse"]):
        data = {"train": ["--dataset", "digits"], "analyze": ["--data", "digits"]}
        line = [*words, *data.get(words[0], []), "--out", str(folder)]
        result = CliRunner().invoke(main, line)
        assert result.exit_code == 2, result.output
        assert "Another run" in result.output
    holder.kill()  # no chance to tidy up
    holder.wait()
    assert (folder / ".wgeo.lock").exists()
    with locked(folder):
        pass
    assert not (folder / ".wgeo.lock").exists()


def test_lock_is_reentrant_in_its_thread_only(tmp_path):
    seen = []

    def other():
        try:
            with locked(tmp_path):
                seen.append("taken")
        except RecordError as error:
            seen.append(str(error))

    with locked(tmp_path):
        with locked(tmp_path / "."):
            assert (tmp_path / ".wgeo.lock").exists()
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "Another run" in seen[0]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_file_systems_without_locks_are_supported(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with locked(tmp_path) as folder:
        assert folder == tmp_path
    monkeypatch.setattr(files, "fcntl", None)
    with locked(tmp_path):
        pass


def test_link_in_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "secret").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".wgeo.lock").symlink_to(tmp_path / "secret")
    with pytest.raises(RecordError, match="not a lock file"), locked(tmp_path / "run"):
        pass
    assert (tmp_path / "secret").read_text() == "kept"


# --- the command line's own ----------------------------------------------------------------------


def test_signal_handlers_and_warnings_are_restored_after_a_command():
    import warnings

    @command("trial", "x", "x")
    def trial():
        with pytest.warns(WgeoWarning):
            warnings.warn("said", WgeoWarning, stacklevel=1)
        warnings.showwarning(WgeoWarning("said"), WgeoWarning, "file", 1)
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, None)
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it was to be stopped")

    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    shown = warnings.showwarning
    try:
        result = CliRunner().invoke(main, ["trial"])
    finally:
        del main.commands["trial"]
    assert result.exit_code == 128 + signal.SIGTERM
    assert result.output.splitlines() == ["wgeo: said", "", STOPPED]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    assert warnings.showwarning is shown
    assert issubclass(RecordError, WgeoError)


@pytest.mark.parametrize("words", [("list", "solvers"), ("analyze", "--help")])
def test_command_with_a_closed_output_pipe_ends_silently(words):
    """As in ``wgeo list archs | head -1``."""
    theirs, ours = os.pipe()
    os.close(theirs)
    line = [sys.executable, "-m", "wgeo", *words]
    done = patience.run(line, env=ENVIRONMENT, stdout=ours, stderr=subprocess.PIPE)
    os.close(ours)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_table_on_a_closed_pipe_does_not_end_the_process(monkeypatch):
    """Rich would, with a code of its own; the command decides."""

    class Closed(io.StringIO):
        def write(self, _):
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Closed())
    with pytest.raises(BrokenPipeError):
        Terminal(80).print("all of it")

"""Wrong arguments of the entry points raise an error of wgeo that says what was expected."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import patience
import pytest
import torch
from click.testing import CliRunner

import wgeo
from wgeo.cli import main
from wgeo.cli.sweeps import read_config
from wgeo.errors import ArgumentError, FeatureError
from wgeo.runtime.progress import show_progress, track
from wgeo.trajectory import as_trajectory

X = np.random.default_rng(0).normal(size=(20, 3))
Y = np.arange(20) % 2


def plainly(call):
    """Run calls in a process without annotation checks; return those that were not refused."""
    code = (
        "import numpy as np, torch, wgeo, warnings\n"
        "from pathlib import Path\n"
        "from wgeo.analysis import analyze_trajectory\n"
        "from wgeo.geodesic import shuffled\n"
        "from wgeo.storage.records import read_record\n"
        "from wgeo.transport import chain\n"
        "warnings.simplefilter('ignore')\n"
        "x, y = np.arange(60.0).reshape(20, 3) ** 0.5, np.arange(20) % 2\n"
        "t = torch.rand(20, 3)\n"
        "traj = wgeo.Trajectory.from_arrays([x, x + 1, 2 * x], y)\n"
        "net = torch.nn.Linear(3, 2)\n"
        "images = torch.rand(4, 1, 8, 8), [0, 1, 0, 1]\n"
        f"for text in {call!r}:\n"
        "    try:\n"
        "        eval(text)\n"
        "        print('nothing', text)\n"
        "    except wgeo.WgeoError as error:\n"
        "        assert str(error).isprintable(), text\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, text, str(error)[:80])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(wgeo.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=environment)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_entry_point_refuses_invalid_arguments():
    wrong = ["'runs/x'", "Path('x')", "x", "[x, x]", "net", "None", "3", "{}"]
    calls = []
    for value in wrong:
        takes = ["wgeo.straightness({})", "wgeo.compare({})", "analyze_trajectory({})"]
        takes += ["chain({})", "shuffled({})", "wgeo.straighter_than({}, traj)"]
        takes += ["wgeo.straighter_than(traj, {})", "wgeo.collapse({})", "wgeo.trace(net, {})"]
        takes += ["wgeo.train('mlp', {}, 'out')", "wgeo.blocks(net, {})"]
        calls += [call.format(value) for call in takes]
    for value in ("x", "net", "None", "3", "{}", "[x]"):
        takes = ["wgeo.Trajectory.load({})", "wgeo.Analysis.load({})", "wgeo.load_checkpoint({})"]
        takes += ["wgeo.load_images({})"]
        calls += [call.format(value) for call in takes]
    for value in ("'x'", "Path('x')", "net", "None", "3", "{}"):
        calls += [f"wgeo.Trajectory.from_arrays({value}, y)", f"wgeo.brenier(net, {value})"]
    for name in ("limit", "size", "seed"):
        for value in ("'many'", "1.5", "[1]", "-1", "{}", "float('nan')", "True"):
            calls.append(f"wgeo.load_images('digits', {name}={value})")
    calls += ["wgeo.load_images('digits', size=2**70)"]
    for value in ("1.5", "[1]", "-1", "{}", "float('nan')", "True", "b'half'"):
        calls.append(f"wgeo.load_images('digits', normalize={value})")
    for name in ("seed", "bootstrap"):
        for value in ("'many'", "1.5", "[1]", "-1", "float('nan')", "None"):
            calls.append(f"wgeo.straightness(traj, {name}={value})")
            calls.append(f"wgeo.collapse(traj, **{{'bootstrap': 2, {name!r}: {value}}})")
    for value in ("'auto'", "None", "[1]", "True", "-1", "float('nan')"):
        calls += [f"wgeo.{name}({value})" for name in ("Exact", "Sinkhorn")]
        calls += [f"wgeo.Sinkhorn({name}={value})"
                  for name in ("tolerance", "marginal_tolerance", "scaling")]  # fmt: skip
        calls.append(f"wgeo.sinkhorn_divergence(x, x, epsilon={value})")
        calls.append(f"wgeo.sinkhorn_divergence(x, x, epsilon=1, marginal_tolerance={value})")
    calls.remove("wgeo.Sinkhorn('auto')")
    train = "wgeo.train('mlp', wgeo.load_images('digits', limit=20), 'out', {}={})"
    for value in ("'many'", "2.5", "[1]", "-1", "float('nan')", "True"):
        calls += [train.format(name, value) for name in ("epochs", "batch_size", "seed")]
        calls.append(f"wgeo.collapse(traj, spectrum_size={value})")
        calls += [f"list(wgeo.{name}(net, images, batch_size={value}))"
                  for name in ("trace", "stream")]  # fmt: skip
    calls += [train.format("lr", value) for value in ("'0.1'", "None", "[0.1]", "True", "10**400")]
    calls += [train.format("checkpoints", value) for value in ("5", "None", "[1.7]", "['a']")]
    assert plainly(calls) == ""


def test_settings_of_training_may_be_numbers_of_numpy(tmp_path):
    settings = "epochs=np.int64(2), batch_size=np.int64(30), lr=np.float32(0.1)"
    settings += ", checkpoints=np.array([1]), options={'width': 4, 'depth': 2}"
    train = (
        f"wgeo.train('mlp', wgeo.load_images('digits', limit=20), {str(tmp_path)!r}, {settings})"
    )
    assert plainly([train]).startswith("nothing")
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_tensors_without_plain_numbers_are_refused():
    tensors = ["t.to(torch.float8_e4m3fn)", "t.to(torch.float8_e5m2)", "t.to('meta')"]
    tensors += ["torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)", "t.to_sparse()"]
    tensors += ["t.to_sparse_csr()", "torch.nested.nested_tensor([t[0], t[1]])"]
    tensors += ["torch.complex(t, t).conj()", "np.ma.masked_array(x, x > 1)", "x.astype('M8[s]')"]
    takes = ["wgeo.wasserstein({0}, {0})", "wgeo.wasserstein(x, {0})", "wgeo.brenier(net, {0})"]
    takes += ["wgeo.Trajectory.from_arrays([{0}], y)", "wgeo.Trajectory.from_arrays([x], {0})"]
    takes += ["wgeo.wasserstein(x, x, a={0})", "wgeo.collapse([({{'a': {0}}}, y)])"]
    assert plainly([take.format(one) for one in tensors for take in takes]) == ""


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint64, torch.bfloat16, torch.bool])
def test_other_types_are_widened(dtype):
    whole = torch.from_numpy((X > 0).astype("uint8"))
    found = wgeo.wasserstein(whole.to(dtype), torch.from_numpy(X))
    assert found.distance == wgeo.wasserstein(whole.double(), torch.from_numpy(X)).distance


def test_message_says_which_values_are_allowed():
    with pytest.raises(ArgumentError, match=r"wgeo\.trace\(net, images\).*Trajectory\.load"):
        as_trajectory("run")
    with pytest.raises(FeatureError, match=r"x has dtype torch\.float8_e4m3fn; .*x\.float\(\)"):
        wgeo.wasserstein(torch.rand(4, 3).to(torch.float8_e4m3fn), X)


@pytest.mark.parametrize(
    "text",
    [
        'out = "o"\nrun = [1, 2]',
        'out = "o"\nrun = "x"',
        'out = "o"\ncheckpoints = "a\\u0000b"',
        'out = "o\\u0000"\ncheckpoints = "a"',
        'out = "o"\n[[run]]\ncheckpoints = ["*\\u0000"]',
        'out = "o"\n"sol\\u0000ver" = "exact"\ncheckpoints = "sweep.toml"',
        *(
            f'out = "o"\n{extra}\ncheckpoints = ["sweep.toml", "sweep.toml"]'
            for extra in (
                '"" = "x"',
                '"data=digits" = "x"',
                "help = true",
                'mufm = "yes"',
                "help = false",
            )
        ),
        "run = " + "[" * 5000,
        "\x00",
    ],
)
def test_a_sweep_file_of_wrong_values_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.toml").write_text(text)
    result = CliRunner().invoke(main, ["sweep", "sweep.toml"])
    assert result.exit_code == 2, result.output
    assert result.output.startswith("wgeo: sweep.toml"), result.output
    assert "Unexpected error" not in result.output
    assert len(result.output.splitlines()) == 1


def test_checkpoint_named_like_an_option_is_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("--trust-checkpoint", "-x.pt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "sweep.toml").write_text('out = "o"\ndata = "digits"\ncheckpoints = "-*"\n')
    _, jobs = read_config(Path("sweep.toml"))
    assert {job.target for job in jobs.values()} == {"--trust-checkpoint", "-x.pt"}
    assert not any(job.plan.loading.trust for job in jobs.values())


def test_a_command_works_without_standard_streams(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with show_progress():
        assert list(track([1, 2], "counting")) == [1, 2]


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sweep.toml", ["sweep", "sweep.toml"]),
        ("net.pt", ["analyze", "net.pt", "--data", "digits", "--out", "out"]),
        ("net.safetensors", ["analyze", "net.safetensors", "--data", "digits", "--out", "out"]),
        ("x.npz", ["train", "--arch", "mlp", "--data", "x.npz", "--out", "out"]),
        ("x.zip", ["train", "--arch", "mlp", "--data", "x.zip", "--out", "out"]),
        ("x.csv", ["train", "--arch", "mlp", "--data", "x.csv", "--out", "out"]),
        ("run/analysis.json", ["report", "run"]),
        ("run/series.json", ["report", "run"]),
        ("run/.wgeo.json", ["train", "--arch", "mlp", "--data", "digits", "--out", "run"]),
        ("run/.wgeo.lock", ["train", "--arch", "mlp", "--data", "digits", "--out", "run"]),
        ("run/history.json", ["train", "--arch", "mlp", "--data", "digits", "--out", "run"]),
        ("run/manifest.json", ["analyze", "run", "--out", "out"]),
    ],
)
def test_files_without_an_end_are_not_read(tmp_path, monkeypatch, kind, name, words):
    assert wgeo.load_checkpoint, wgeo.train  # imports take their time, and are no part of this
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(exist_ok=True)
    if kind == "pipe":
        os.mkfifo(name)
    elif kind == "device":
        Path(name).symlink_to("/dev/zero")
    else:
        Path(name).mkdir()
    with patience.limited(work=30):
        result = CliRunner().invoke(main, words)
    assert result.exit_code == 2, result.output
    assert result.output.startswith("wgeo: ")
    assert "Unexpected error" not in result.output
    assert name.split("/")[0] in result.output
    assert len(result.output.splitlines()) == 1


@pytest.mark.parametrize("words", [["--help"], ["list", "archs"], ["analyze", "--help"]])
def test_help_that_cannot_be_written_is_an_error_in_one_line(words):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "wgeo", *words], stdout=full,
                              stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("wgeo: ")
    assert len(done.stderr.splitlines()) == 1

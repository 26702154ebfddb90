"""The current folder is untrusted: no command, nor its child processes, imports from it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import wgeo
from wgeo.report import building

ROOT = Path(__file__).parents[2]
PLANTED = """
import os
with open(os.environ["PROOF"], "a") as proof:
    proof.write(f"{__name__}\\n")
raise ImportError("this module was planted")
"""
MEASURING = ["--bootstrap", "0", "--no-mufm", "--reference", "none", "--solver", "sliced"]
DIGITS = ["--data", "digits", "--samples", "40"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of modules with the names of all installed ones, which record when they are run."""
    made = tmp_path_factory.mktemp("downloads")
    names = {"sitecustomize", "usercustomize", "timm", "pykeops", "wgeo", *sys.stdlib_module_names}
    names |= set(importlib.metadata.packages_distributions())
    for name in filter(str.isidentifier, names):
        (made / f"{name}.py").write_text(PLANTED)
    # Matplotlib reads this one first, and would run TeX with what it says.
    (made / "matplotlibrc").write_text("text.usetex: True\nfont.size: 40\n")
    (made / "docutils.conf").write_text("[general]\nhalt_level: 1\nreport_level: 1\n")
    return made


@pytest.fixture
def run(folder, monkeypatch):
    """Run a program in the folder; return which of the modules were run."""
    proof = folder.parent / "proof"
    # As the command is installed: the folder of the script is first on the path.
    script = folder.parent / "bin" / "wgeo"
    script.parent.mkdir(exist_ok=True)
    script.write_text(
        f"#!{sys.executable}\nfrom wgeo.__main__ import main\n"
        "if __name__ == '__main__':\n    main()\n"
    )
    script.chmod(0o755)
    several = folder.parent / "bin" / "several"  # commands in one process: libraries load once
    several.write_text(
        f"#!{sys.executable}\nimport json, sys\nfrom wgeo.__main__ import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['wgeo', *words]\n"
        "    try:\n        main()\n"
        "    except SystemExit as end:\n        assert not end.code, words\n"
    )
    several.chmod(0o755)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setenv("PROOF", str(proof))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")

    def start(*words):
        proof.unlink(missing_ok=True)
        program = [sys.executable] if words[0] == "python" else [str(script.parent / words[0])]
        done = subprocess.run([*program, *words[1:]], cwd=folder, capture_output=True, text=True)
        ran = proof.read_text().split() if proof.exists() else []
        return done, ran

    return start


def refused(done_and_ran):
    """What a command ran of the folder, once it has done its work."""
    done, ran = done_and_ran
    assert done.returncode == 0, (ran, done.stdout, done.stderr)
    return ran


def test_modules_would_be_imported_without_protection(run):
    for words in (["-c", "import random"], ["-m", "sphinx"], ["-m", "wgeo"]):
        _, ran = run("python", *words)
        assert ran


def test_no_command_imports_from_the_current_folder(run, folder):
    """All commands in turn, with their processes: Sphinx, workers, those of torchrun."""
    small = ["--option", "width=4", "--option", "depth=2", "--checkpoints", "all"]
    train = ["train", "--arch", "isoresnet", *DIGITS, "--epochs", "1", *small, "--out", "run"]
    nets = [f"run/checkpoints/epoch-000{i}.pt" for i in (0, 1)]
    (folder / "sweep.toml").write_text(
        f'out = "swept"\ndata = "digits"\nsamples = 40\ncheckpoints = {nets}\n'
        'bootstrap = 0\nmufm = false\nreference = "none"\nsolver = "sliced"\n'
    )
    commands = [
        ["--help"],
        ["list", "archs"],
        train,
        ["ufm", "mse", "--classes", "3", "--dim", "4", "--per-class", "2", "--out", "ufm"],
        ["trace", nets[1], *DIGITS, "--store", "features"],
        ["analyze", "features", *MEASURING, "--no-report", "--out", "a"],
    ]
    assert refused(run("several", json.dumps(commands))) == []
    assert refused(run("wgeo", "sweep", "sweep.toml", "--jobs", "2", "--no-report")) == []
    assert refused(run("wgeo", "report", "swept/epoch-0000")) == []
    assert (folder / "swept" / "epoch-0000" / "report" / "html" / "index.html").is_file()
    assert refused(run("python", "-P", "-m", "wgeo", "list", "solvers")) == []
    torchrun = ["-P", "-m", "torch.distributed.run", "--nproc-per-node=2", "--no-python", "wgeo"]
    trace = ["trace", nets[1], *DIGITS, "--store", "traced"]
    assert refused(run("python", *torchrun, *trace)) == []


def test_only_the_named_module_of_the_current_folder_is_run(run, folder):
    code = "import torch\ndef net(num_classes): return torch.nn.Sequential(torch.nn.Linear(2, 2))\n"
    (folder / "my_network.py").write_text(code)
    script = "from wgeo import models; models.build('my_network:net', num_classes=2); import timeit"
    assert refused(run("python", "-P", "-c", script)) == []


def test_figures_do_not_depend_on_a_matplotlibrc(run, folder):
    assert "matplotlibrc" in os.listdir(folder)
    script = (
        "import matplotlib as mpl; assert mpl.rcParams['text.usetex']\n"
        "from wgeo import plots\n"
        "from wgeo.plots.style import styled\n"
        "styled(lambda: print(mpl.rcParams['text.usetex'], mpl.rcParams['font.size']))()\n"
        "assert mpl.rcParams['text.usetex']\n"
    )
    done, ran = run("python", "-P", "-c", script)
    assert (done.stdout, ran) == ("False 8.5\n", []), done.stderr


def test_empty_path_entry_is_not_passed_to_child_processes(monkeypatch, tmp_path):
    """``PYTHONPATH=$PYTHONPATH:/lib`` has an empty entry if the variable was not set."""
    library = tmp_path / "lib"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", "relative", str(library)]))
    done = building._run([sys.executable, "-P", "-c", "import sys; print(sys.path[:2])"], tmp_path)
    assert done.stdout.decode().strip() == str([str(Path(wgeo.__file__).parents[1]), str(library)])


def test_commands_run_in_a_deleted_folder(tmp_path):
    here = tmp_path / "deleted"
    here.mkdir()
    code = "import os, runpy; os.rmdir(os.getcwd()); "
    code += "runpy.run_module('wgeo', run_name='__main__')"
    line = [sys.executable, "-c", code, "list", "solvers"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=here, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("exact"), done.stderr
    assert not done.stderr


def test_python_m_wgeo_removes_the_current_folder_from_the_path(tmp_path, monkeypatch):
    """`python -m wgeo` has already imported wgeo; no later import comes from the folder."""
    (tmp_path / "click.py").write_text("raise SystemExit('planted')")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    line = [sys.executable, "-m", "wgeo", "list", "solvers"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("exact")
    assert shutil.which("wgeo", path=Path(sys.executable).parent), "the command is installed"

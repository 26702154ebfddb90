"""Many analyses: each done once, resumed after any kill, failures reported, results compared."""

from __future__ import annotations

import errno
import inspect
import json
import os
import random
import re
import shlex
import signal
import tomllib
from pathlib import Path

import click
import numpy as np
import patience
import pytest
import torch
from cases import save_stores
from command_line import run

import wgeo
import wgeo.analysis  # here, not anew in every forked process
from wgeo import Trajectory
from wgeo.analysis.plan import SETTINGS, AnalysisPlan, _sha256, is_stored
from wgeo.cli import jobs as runs
from wgeo.cli import main
from wgeo.cli.analysis import analyze
from wgeo.cli.jobs import Job, folder_names
from wgeo.cli.options import given_settings
from wgeo.cli.sweeps import read_config, sweep
from wgeo.errors import ArgumentError, CheckpointError, WgeoError


def numbers(record):
    """A record without dates and times."""
    text = json.loads(json.dumps(record))
    for key in ("created", "command"):
        text.pop(key, None)
    for block in text["blocks"]:
        block.pop("seconds")
    return text


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Three stores of features, of 16 samples each."""
    return save_stores(tmp_path_factory.mktemp("features"), "abc")


QUICK = ("--bootstrap", "0", "--no-report", "--reference", "none", "--no-mufm")


def test_features_are_traced_and_analysed_on_the_command_line(tmp_path, undrawn):
    run(
        *("train", "--arch", "isoresnet", "--dataset", "digits", "--out", tmp_path / "t"),
        *("--epochs", "1", "--option", "width=4", "--option", "depth=2", "--samples", "60"),
    )
    last = tmp_path / "t" / "checkpoints" / "epoch-0001.pt"
    words = ("trace", last, "--data", "digits", "--store", tmp_path / "s", "--project", "16")
    text = run(*words, "--samples", "60", "--dtype", "float16")
    assert "60 samples, 4 layers" in text
    assert "every distance is preserved up to a factor between" in text
    assert "pool, dtype differ" not in text
    assert "wgeo: " in run(*words, "--samples", "80", "--dtype", "float16", code=2)
    stored = tmp_path / "s"
    run("analyze", stored, "--out", tmp_path / "a", *QUICK[:3], "--mufm")
    record = json.loads((tmp_path / "a" / "analysis.json").read_text())
    origin = record["provenance"]
    assert origin["arch"] == "isoresnet"
    assert origin["data"] == "digits"
    assert origin["projected"]["width"] == 16
    assert len(origin["sha256"]) == 64
    assert len(origin["job"]) == 64
    assert "untrained checkpoint" in record["reference"]["skipped"]
    run("analyze", stored, "--out", tmp_path / "b", *QUICK[:3], "--no-mufm", "--reference", stored)
    record = json.loads((tmp_path / "b" / "analysis.json").read_text())
    assert record["reference"]["tests"][0]["difference"] == 0
    for option in (("--pool", "flat"), ("--data", "digits"), ("--arch", "nonsense")):
        said = run("analyze", stored, "--out", tmp_path / "c", *option, code=2)
        assert "holds stored features" in said
        assert option[0] in said
    assert "add --data" in run("analyze", last, "--out", tmp_path / "c", code=2)
    (tmp_path / "empty").mkdir()
    said = run("analyze", tmp_path / "empty", "--out", tmp_path / "c", code=2)
    assert "No stored features" in said


def test_finished_analyses_are_not_repeated(features, tmp_path, undrawn, monkeypatch):
    places = [features / name for name in "abc"]
    text = run("analyze", *places, "--out", tmp_path, *QUICK)
    assert "done before" not in text
    series = json.loads((tmp_path / "series.json").read_text())
    assert [row["name"] for row in series["analyses"]] == ["a", "b", "c"]
    (tmp_path / "b" / "analysis.json").unlink()
    measured = []
    measure = Job.measure
    monkeypatch.setattr(
        Job, "measure", lambda job, typed: (measured.append(job.target), measure(job, typed))[1]
    )
    assert "2 of 3 analyses were done before" in run("analyze", *places, "--out", tmp_path, *QUICK)
    assert measured == [str(features / "b")]
    run("analyze", *places, "--out", tmp_path, *QUICK, "--seed", "1")
    assert len(measured) == 4


def test_key_depends_on_contents(features, tmp_path):
    job = Job(str(features / "a"), AnalysisPlan())
    assert job.key == Job(job.target, AnalysisPlan.of(device="cuda", batch_size=7)).key
    assert job.key != Job(str(features / "b"), job.plan).key
    assert job.key != Job(job.target, AnalysisPlan.of(seed=1)).key
    copied = Trajectory.load(features / "a").save(tmp_path / "elsewhere")
    assert np.array_equal(copied.last, Trajectory.load(features / "a").last)
    assert job.key == Job(str(tmp_path / "elsewhere"), job.plan).key
    with pytest.raises(CheckpointError, match="no checkpoint"):
        _sha256(str(tmp_path / "none.pt"))


@pytest.mark.parametrize("processes", [1, 2])
def test_failure_is_reported_and_the_others_are_compared(
    features, tmp_path, undrawn, monkeypatch, processes
):
    monkeypatch.setattr(runs, "_START_METHOD", "fork")
    measure = Job.measure

    def measured(job, typed):
        if job.target.endswith("/b"):
            if processes == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            raise MemoryError("no more")
        return measure(job, typed)

    monkeypatch.setattr(Job, "measure", measured)
    places = [features / name for name in "abc"]
    words = ("analyze", *places, "--out", tmp_path, *QUICK, "--jobs", processes)
    text = run(*words, code=2)
    assert ("ended with code -9" if processes == 2 else "b: MemoryError: no more") in text
    assert "1 of 3 checkpoints" in text
    series = json.loads((tmp_path / "series.json").read_text())
    assert [row["name"] for row in series["analyses"]] == ["a", "c"]
    monkeypatch.setattr(Job, "measure", measure)
    assert "2 of 3 analyses were done before" in run(*words)
    series = json.loads((tmp_path / "series.json").read_text())
    assert [row["name"] for row in series["analyses"]] == ["a", "b", "c"]


CONFIG = """
out = "{out}"
bootstrap = 0
reference = "none"
[[run]]
checkpoints = "{features}/[ab]"
[[run]]
name = "sliced"
checkpoints = ["{features}/c"]
solver = "sliced"
mufm = false
"""


@pytest.fixture
def config(features, tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(CONFIG.format(out=tmp_path / "out", features=features))
    return path


def test_sweep_file_lists_runs(config, features, tmp_path, undrawn):
    out, jobs = read_config(config)
    assert out == str(tmp_path / "out")
    assert list(jobs) == ["a", "b", "sliced-c"]
    chosen, default = jobs["sliced-c"].plan.measuring, jobs["a"].plan.measuring
    assert (chosen.solver, chosen.mufm) == ("sliced", False)
    assert (default.solver, default.mufm, default.bootstrap) == ("exact", None, 0)
    first = run("sweep", config, "--index", "1/2", "--no-report")
    assert "1 analyses are left to other parts" in first
    assert not (tmp_path / "out" / "series.json").exists()
    run("sweep", config, "--index", "2/2", "--no-report")  # the last sets them side by side
    series = json.loads((tmp_path / "out" / "series.json").read_text())
    assert [row["name"] for row in series["analyses"]] == ["a", "b", "sliced-c"]
    assert "3 of 3 analyses were done before" in run("sweep", config, "--no-report")
    for bad in ("0/2", "3/2", "1", "a/b"):
        assert "--index" in run("sweep", config, "--index", bad, code=2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("out = ", "cannot be read"),
        ("data = 'digits'", "needs out"),
        ("out = 'o'\nrun = 3", r"\[\[run\]\]"),
        ("out = 'o'", "needs checkpoints"),
        ("out = 'o'\ncheckpoints = []", "needs checkpoints"),
        ("out = 'o'\ncheckpoints = 'none-*.pt'", "no checkpoint none"),
        ("out = 'o'\ncheckpoints = 'FILE'\nwings = 2", "'wings' is not an option"),
        ("out = 'o'\ncheckpoints = 'FILE'\nsample = 2", "did you mean 'samples'"),
        ("out = 'o'\ncheckpoints = 'FILE'\nstore = 's'", r"not an option of an analysis\.$"),
        ("out = 'o'\ncheckpoints = 'FILE'\ndata = 'digits'\nsamples = true", "--samples must be"),
        ("out = 'o'\ncheckpoints = 'FILE'\ndata = 'digits'\ntap = 'mid'", "Unknown tap 'mid'"),
        ("out = 'o'\ncheckpoints = 'FILE'\ndata = 'digits'\nembed = 'pca:0'", "choose pad, or pca"),
        (
            "out = 'o'\ncheckpoints = 'FILE'\ndata = 'digits'\nsolver = 'exact:x=1'",
            "--solver exact",
        ),
        ("out = 'o'\ncheckpoints = 'FILE'\ndata = 'digits'\nsamples = 'many'", "many"),
        ("out = 'o'\ncheckpoints = 'FILE'\ndata = 'digits'", "fewer than two checkpoints"),
        ("out = 'o'\ncheckpoints = ['FILE', 'FILE']", "No images are given"),
    ],
)
def test_invalid_sweep_file_is_refused(tmp_path, monkeypatch, text, said):
    import re

    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("")
    Path("c.toml").write_text(text)
    answer = run("sweep", "c.toml", code=2)
    assert answer.startswith("wgeo: ")
    assert len(answer.splitlines()) == 1
    assert re.search(said, answer)


def test_a_file_names_networks_and_stored_features(features, tmp_path):
    (tmp_path / "net.pt").write_bytes(b"weights")
    saved = tmp_path / "model"  # a folder too, but a network
    saved.mkdir()
    (saved / "model.safetensors").write_bytes(b"weights")
    text = f"""
        out = "o"
        data = "digits"
        samples = 500
        arch = "mlp"
        checkpoints = ["{features}/a", "{tmp_path}/net.pt", "{saved}"]
    """
    path = tmp_path / "c.toml"
    path.write_text(text)
    _, jobs = read_config(path)
    assert jobs["net"].plan.data.limit == jobs["model"].plan.data.limit == 500
    assert jobs["net"].plan.loading.arch == jobs["model"].plan.loading.arch == "mlp"
    assert jobs["a"].plan == AnalysisPlan()  # nothing is inherited
    for setting, flag in (("tap = 'pre'", "--tap"), ("prefix = 'a.'", "--prefix")):
        path.write_text(f"{text}\n[[run]]\n{setting}")
        with pytest.raises(ArgumentError, match=rf"a holds stored features: {flag} can"):
            read_config(path)


def test_results_of_another_part_are_included(features, tmp_path, undrawn):
    plan = AnalysisPlan.of(reference="none", bootstrap=0, mufm=False)
    jobs = {name: Job(str(features / name), plan) for name in "ab"}
    with click.Context(main) as ctx, pytest.MonkeyPatch.context() as patch:
        ctx.meta["wgeo.typed"] = "wgeo"
        here = runs._run_here

        def beside(todo, folder):
            patch.setattr(runs, "_run_here", here)
            runs.run_all(jobs, folder, part=(2, 2))
            yield from here(todo, folder)

        patch.setattr(runs, "_run_here", beside)
        done, failed = runs.run_all(jobs, tmp_path, part=(1, 2))
    assert list(done) == ["a", "b"]
    assert not failed


@pytest.mark.parametrize("measured_before", [True, False])
def test_undrawn_analyses_are_done_but_do_not_replace_those_of_other_parts(
    features, tmp_path, monkeypatch, measured_before
):
    """Of four analyses, part 1 does two, one of them without figures; part 2 has done one."""
    plan = AnalysisPlan.of(reference="none", bootstrap=0, mufm=False)
    jobs = {name: Job(str(features / name[0]), plan) for name in ("a", "b", "c", "a-2")}

    def undrawable(*_, **__):
        raise ValueError("no font")

    def gathered():
        with click.Context(main) as ctx:
            ctx.meta["wgeo.typed"] = "wgeo"
            runs.gather(jobs, tmp_path, with_report=False, part=(1, 2))

    nothing = lambda *_, **__: []  # noqa: E731
    monkeypatch.setattr("wgeo.plots.figures", nothing)
    monkeypatch.setattr("wgeo.plots.files.current_files", nothing)
    with click.Context(main) as ctx:
        ctx.meta["wgeo.typed"] = "wgeo"
        runs.run_all({"b": jobs["b"]}, tmp_path)
        if measured_before:
            runs.run_all({name: jobs[name] for name in "ac"}, tmp_path)
    monkeypatch.setattr("wgeo.plots.figures", undrawable)
    monkeypatch.setattr("wgeo.plots.files.current_files", lambda *_: None)
    with pytest.raises(WgeoError, match="2 of 4 analyses are saved, but lack figures"):
        gathered()
    assert not (tmp_path / "series.json").exists()  # a-2 is left to part 2
    monkeypatch.setattr("wgeo.plots.figures", nothing)
    monkeypatch.setattr("wgeo.plots.files.current_files", nothing)
    with click.Context(main) as ctx:
        ctx.meta["wgeo.typed"] = "wgeo"
        runs.run_all({"a-2": jobs["a-2"]}, tmp_path)
    gathered()
    series = json.loads((tmp_path / "series.json").read_text())
    assert [row["name"] for row in series["analyses"]] == list(jobs)


def test_figures_that_all_analyses_and_their_comparison_lack_are_all_named(
    features, tmp_path, monkeypatch
):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("wgeo.plots.figures", full)
    text = run("analyze", features / "a", features / "b", "--out", tmp_path, *QUICK, code=2)
    for name in ("a", "b"):
        assert f"{name}/analysis.json is complete, but not all of its figures" in text
    last = text.splitlines()[-1]
    assert last.startswith("wgeo: 2 of 2 analyses are saved, but lack figures")
    assert "series.json is complete, but not all of its figures" in last


def test_checkpoint_without_a_key_does_not_stop_the_others(
    features, tmp_path, undrawn, monkeypatch
):
    def odd(target, sha256=_sha256):
        if target.endswith("/a"):
            raise KeyError("odd")
        return sha256(target)

    monkeypatch.setattr("wgeo.analysis.plan._sha256", odd)
    text = run("analyze", features / "a", features / "b", "--out", tmp_path, *QUICK, code=2)
    assert "a: KeyError: 'odd'" in text
    assert (tmp_path / "b" / "analysis.json").exists()


def test_preset_of_images_is_part_of_the_key(tmp_path, monkeypatch):
    (tmp_path / "net.pt").write_bytes(b"weights")

    def key(preset):
        images = type("Some", (), {"fingerprint": "f", "preset": preset})
        monkeypatch.setattr("wgeo.analysis.plan._images", lambda *_: images)
        return AnalysisPlan().key(str(tmp_path / "net.pt"))

    assert key("mnist") == key("mnist") != key("cifar10")


def test_the_key_is_that_of_the_current_contents(tmp_path, features):
    reference = tmp_path / "last.pt"

    def key(weights):
        reference.write_bytes(weights)
        return AnalysisPlan.of(reference=reference).key(str(features / "a"))

    assert key(b"weights") == key(b"weights") != key(b"others")
    by_text = AnalysisPlan.of(reference=str(reference))
    assert by_text.key(str(features / "a")) == key(b"others")


KEYS = {  # of wgeo 0.2.0 before there were plans, for options of `wgeo analyze`
    "--data digits": "13dbe017c808ac1ff84b086ad4308ffab7e4e419ccba223dacdc45ff68c2815d",
    "--data digits --arch mlp --num-classes 10 --prefix a. --container ema --trust-checkpoint "
    "--split test --samples 0 --normalize mnist --image-size 8 --skip-broken --seed 3": (
        "5cdce7217b278757bdc4eba4dcfd4d651c88898f24f243bdafca4f2c95e7ede4"
    ),
    "--data digits --pool grid:2 --tap pre --layers 'a, b' --device cpu --batch-size 7 "
    "--memory 2GiB": "44f69e9b05ff9dda30e7534ca3a633a7d85af68541528e149ba61bfd5f8d5bc7",
    "--data digits --solver sinkhorn:tolerance=1e-2,epsilon=1e-2 --bootstrap 0 --embed pca:2 "
    "--reference net.pt --reference-networks 3 --brenier 0 --alignment 5 --mufm": (
        "1a4a173c9ed6eb3b20ae08dea02d00730b15cbd162cfb2f7bceb0b4cf62b9d91"
    ),
    "--reference shuffled --no-mufm": (
        "36dde21cb865735c88e9c266b92547da96f3eae01bc281752229936f80f1d7dc"
    ),
}
SWEEP_KEYS = {
    "net": "c8207c2db38702dcd5516f4c94bf721c54d4f5163577a486793000aa805e7b6c",
    "stored": "4e66d401933eb129c3e9156221b6ce0364ffa798aae4395d746ea356058f676a",
}
SWEEP = """
out = "o"
data = "digits"
samples = 500
arch = "mlp"
num-classes = 10
pool = "flat"
reference-networks = 3
device = "cpu"
bootstrap = 100
solver = "sinkhorn:epsilon=1e-2"
[[run]]
checkpoints = "net.pt"
layers = ["a", "b"]
trust-checkpoint = true
mufm = false
[[run]]
checkpoints = "stored"
embed = "pca:2"
seed = 1
"""


@pytest.fixture
def named_contents(tmp_path, monkeypatch):
    """A checkpoint and stored features with fixed contents, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("net.pt").write_bytes(b"weights")
    Path("stored").mkdir()
    images = type("Some", (), {"fingerprint": "f", "preset": "p"})
    monkeypatch.setattr("wgeo.analysis.plan._images", lambda *_: images)
    monkeypatch.setattr("wgeo.analysis.plan._sha256", lambda target: f"sha of {Path(target).name}")
    monkeypatch.setattr("wgeo.analysis.plan.__version__", "0.2.0")


@pytest.mark.usefixtures("named_contents")
def test_an_analysis_done_before_there_were_plans_is_not_repeated():
    for words, key in KEYS.items():
        target = "net.pt" if "--data" in words else "stored"
        ctx = analyze.make_context("analyze", ["--out=.", *shlex.split(words), target])
        assert Job.of(target, given_settings(ctx)).key == key, words
    Path("sweep.toml").write_text(SWEEP)
    _, jobs = read_config(Path("sweep.toml"))
    assert {name: job.key for name, job in jobs.items()} == SWEEP_KEYS


def sweep_examples():
    """Every configuration of a sweep that a page or the command's help shows."""
    root = Path(__file__).resolve().parents[2]
    pages = [*(root / "docs").glob("*.md"), *root.glob("*.md"), *root.glob("experiments/**/*.md")]
    shown = {page.name: re.findall(r"(?ms)^```toml\n(.*?)^```", page.read_text()) for page in pages}
    shown["help"] = re.findall(r"(?m)^    out = (?:.*\n)+?(?=\n)", inspect.cleandoc(sweep.help))
    return [(page, text) for page, texts in shown.items() for text in texts if "[[run]]" in text]


def test_sweeps_are_shown_in_a_page_and_in_the_help():
    assert {"scale.md", "help"} <= {page for page, _ in sweep_examples()}


@pytest.mark.parametrize(("page", "text"), sweep_examples())
def test_sweep_shown_gives_plans_of_its_checkpoints(page, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    patterns = [run["checkpoints"] for run in tomllib.loads(text)["run"]]
    for pattern in np.hstack(patterns):
        target = Path(pattern.replace("*", "epoch-0001"))
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix:
            target.write_bytes(b"weights")
        else:  # stored features
            target.mkdir()
    Path("sweep.toml").write_text(text)
    _, jobs = read_config(Path("sweep.toml"))
    assert len(jobs) == len(np.hstack(patterns)) > 1
    assert {is_stored(job.target) for job in jobs.values()} == {False, True}
    taps = {job.plan.reading.tap for job in jobs.values() if not is_stored(job.target)}
    assert taps == {"post", "pre"}


@pytest.mark.usefixtures("named_contents")
def test_equal_plans_of_python_and_of_the_command_line_have_equal_keys():
    words = AnalysisPlan.of(solver="sinkhorn:epsilon=0.01", layers="a,b", bootstrap=0)
    python = AnalysisPlan.of(solver=wgeo.Sinkhorn(epsilon=0.01), layers=["a", "b"], bootstrap=0)
    assert words.key("net.pt") == python.key("net.pt")
    assert AnalysisPlan.of(solver=wgeo.Exact()).key("net.pt") == AnalysisPlan().key("net.pt")
    assert words.reading.parameters() == python.reading.parameters()


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_checked_when_a_plan_is_built(name):
    """No setting accepts an object of no known kind; a device is checked when it is used."""
    if name != "device":
        with pytest.raises(ArgumentError):
            AnalysisPlan.of(**{name: object()})
    option = {option.name: option for option in analyze.params}[name]
    assert name == "source" or option.default == SETTINGS[name].default


def test_names_of_folders_differ(tmp_path):
    (tmp_path / "x.y").mkdir()
    targets = ["a/last.pt", "b/last.pt", "report.pt", str(tmp_path / "x.y")]
    assert list(folder_names(targets)) == ["last", "last-2", "report-2", "x.y"]
    assert list(folder_names(["last.pt"], "run", ("run-last",))) == ["run-last-2"]


def test_killed_sweep_continues_to_the_same_numbers(features, tmp_path, undrawn):
    torch.set_num_threads(1)
    rng = random.Random(0)
    targets = {name: str(features / name) for name in "abc"}
    plan = AnalysisPlan.of(reference="none", bootstrap=0, mufm=False)
    jobs = {name: Job(target, plan) for name, target in targets.items()}

    def swept(place):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(2)
                with click.Context(main) as ctx:
                    ctx.meta["wgeo.typed"] = "wgeo"
                    done, failed = runs.run_all(jobs, place)
                code = int(list(done) != list("abc") or bool(failed))
            finally:
                os._exit(code)
        return child

    status, taken = patience.waited(swept(tmp_path / "whole"))
    assert status == 0
    expected = {n: numbers(wgeo.Analysis.load(tmp_path / "whole" / n).record) for n in "abc"}
    partly, place = 0, tmp_path / "0"
    for kill in range(10):
        child = swept(place)
        patience.until(child, rng.uniform(0, 0.7 * taken))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = [n for n in "abc" if (place / n / "analysis.json").exists()]
        for name in found:
            assert numbers(wgeo.Analysis.load(place / name).record) == expected[name]
        partly += 0 < len(found) < 3
        if len(found) == 3:
            place = tmp_path / str(kill + 1)
    assert partly
    assert os.waitpid(swept(place), 0)[1] == 0
    for name in "abc":
        assert numbers(wgeo.Analysis.load(place / name).record) == expected[name]

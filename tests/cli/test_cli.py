"""The command line: teaches, works end to end, and answers mistakes in one line."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from command_line import run

from wgeo import plots
from wgeo.analysis.plan import solver_of
from wgeo.cli import main
from wgeo.data.names import KINDS
from wgeo.errors import ArgumentError
from wgeo.models.names import SUMMARIES
from wgeo.models.registry import ARCHS
from wgeo.plots.sources import is_series

# Of tests that are not about what stands beside the figures.
BARE = ("--brenier", "0", "--alignment", "0", "--no-mufm")
PLAIN = ("--reference", "none", *BARE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny network, trained for two epochs on digits."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    run(
        *("train", "--arch", "isoresnet", "--dataset", "digits", "--out", out, "--epochs", "2"),
        *("--option", "width=8", "--option", "depth=2", "--samples", "200"),
    )
    return out


@pytest.fixture(scope="module")
def analysed(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "analysis"
    last = trained / "checkpoints" / "epoch-0002.pt"
    text = run(
        *("analyze", last, "--data", "digits", "--samples", "100", "--out", out),
        *("--bootstrap", "20", "--reference-networks", "2", *BARE),
    )
    return out, text


@pytest.mark.parametrize("command", ["demo", "train", "analyze", "report", "list"])
def test_help_teaches_by_example(command):
    text = run(command, "--help")
    assert f"wgeo {command}" in text.split("Example")[1]


def test_from_training_to_report(analysed):
    out, text = analysed
    record = json.loads((out / "analysis.json").read_text())
    assert record["verdict"]
    assert all(said["words"] in " ".join(text.split()) for said in record["verdict"])
    assert record["command"].startswith("wgeo analyze ")
    assert "--bootstrap 20" in record["command"]
    assert (out / "report" / "html" / "index.html").exists()
    assert len(record["provenance"]["sha256"]) == 64
    assert record["provenance"]["arch"] == "isoresnet"
    for block in record["blocks"]:
        assert block["target"] in text


def test_the_report_can_be_made_again(analysed, monkeypatch):
    def html(project, _):  # Sphinx has built this one before
        (project / "html").mkdir()
        (project / "html" / "index.html").write_text("again")

    out, _ = analysed
    monkeypatch.setattr("wgeo.report.building.html", html)
    assert "index.html" in run("report", out)
    assert (out / "report" / "html" / "index.html").read_text() == "again"


def test_several_checkpoints_are_analysed_separately_and_compared(trained, tmp_path, monkeypatch):
    def of_series(record, *words, **more):
        return draw(record, *words, **more) if is_series(record) else []

    draw = plots.figures  # those of each checkpoint take half of the time
    monkeypatch.setattr(plots, "figures", of_series)
    files = sorted((trained / "checkpoints").glob("*.pt"))[-2:]
    assert len(files) == 2
    out = tmp_path / "all"
    text = run(
        *("analyze", *reversed(files), "--data", "digits", "--samples", "40", "--out", out),
        *("--no-report", "--bootstrap", "5", "--reference", files[0], *BARE),
    )
    for file in files:
        record = json.loads((out / file.stem / "analysis.json").read_text())
        assert record["reference"]["kind"] == "network"
    series = json.loads((out / "series.json").read_text())
    assert series["axis"] == "epoch"
    assert [row["name"] for row in series["analyses"]] == [file.stem for file in files]
    assert (out / "figures" / "over.png").exists()
    assert "length ratio" in text
    two = tmp_path / "two"
    page = run("report", out / files[0].stem, out / files[-1].stem, "--out", two).strip()
    assert page.endswith("index.html")
    assert "--out" in run("report", out / files[0].stem, out / files[-1].stem, code=2)


@pytest.mark.usefixtures("undrawn")
def test_failing_checkpoint_is_reported_and_the_others_are_kept(trained, tmp_path):
    last = trained / "checkpoints" / "epoch-0002.pt"
    (tmp_path / "broken.pt").write_bytes(last.read_bytes()[:400])
    words = ("--data", "digits", "--samples", "40", "--no-report", "--bootstrap", "0", *PLAIN)
    text = run(
        *("analyze", tmp_path / "broken.pt", last, *words, "--out", tmp_path / "out"), code=2
    )
    assert "no checkpoint" in run(
        "analyze", tmp_path / "none.pt", last, *words, "--out", tmp_path / "o", code=2
    )
    assert "broken.pt" in text
    assert "1 of 2 checkpoints" in text
    assert (tmp_path / "out" / "epoch-0002" / "analysis.json").exists()


@pytest.mark.usefixtures("undrawn")
def test_checkpoints_with_equal_names_do_not_overwrite_each_other(trained, tmp_path):
    last = trained / "checkpoints" / "epoch-0002.pt"
    (tmp_path / "epoch-0002.pt").write_bytes(last.read_bytes())
    run(
        *("analyze", last, tmp_path / "epoch-0002.pt", "--data", "digits", "--samples", "40"),
        *("--out", tmp_path / "both", "--no-report", "--bootstrap", "0", *PLAIN),
    )
    for name, path in (("epoch-0002", last), ("epoch-0002-2", tmp_path / "epoch-0002.pt")):
        record = json.loads((tmp_path / "both" / name / "analysis.json").read_text())
        assert record["provenance"]["checkpoint"] == str(path)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_output_to_a_closed_stream_lands_in_no_file(tmp_path, closed):
    code = (
        "from wgeo.__main__ import _keep_streams; _keep_streams(); import sys; "
        "file = open(sys.argv[1], 'w'); file.write(str(file.fileno()))"
    )
    line = f'exec "$0" -c "$1" "$2" {closed}'
    subprocess.run(["sh", "-c", line, sys.executable, code, tmp_path / "file"], check=True)
    assert int((tmp_path / "file").read_text()) > 2


@pytest.mark.parametrize("what", ["archs", "datasets", "solvers"])
def test_list_commands_print_names(what):
    assert {"archs": "cifar_resnet20", "datasets": "digits", "solvers": "exact"}[what] in run(
        "list", what
    )


HEAVY = ("torch", "torchvision", "matplotlib", "sklearn", "scipy", "ot", "geomloss", "pandas")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--help"], "wgeo demo"),
        (["list", "archs"], "torchvision:resnet18"),
        (["list", "datasets"], "cifar10"),
        (["list", "solvers"], "sinkhorn"),
        (["list", "arch"], "did you mean 'archs'?"),
        (["analyze", "nope.pt", "--data", "digits", "--out", "o"], "no checkpoint nope.pt"),
        (["analyze", __file__, "--data", "digts", "--out", "o"], "did you mean 'digits'?"),
        (["trace", "nope.pt", "--data", "digits", "--store", "o"], "no checkpoint nope.pt"),
        (["train", "--arch", "mlp", "--data", "nope.zip", "--out", "o"], "'nope.zip'"),
        (["report", "nope"], "No analysis at nope"),
    ],
)
def test_answers_without_loading_libraries(words, said, tmp_path):
    """Importing torch alone takes seconds."""
    script = (
        f"import sys; sys.argv[1:] = {words}\n"
        "from wgeo.cli import main\n"
        "try: main()\n"
        f"finally: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path
    )
    assert said in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
    assert not list(tmp_path.iterdir())


def test_every_kind_of_file_is_listed():
    text = run("list", "datasets")
    assert all(f"{kind}:PATH" in text or (kind == "zip" and "a zip" in text) for kind in KINDS)


def test_light_lists_name_what_there_is():
    assert list(SUMMARIES) == list(ARCHS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--data", "digits", "--samples", "1"], "samples|images"),
        (["--data", "digits", "--pool", "max"], "choose gap"),
        (["--data", "digits", "--solver", "magic"], "choose exact"),
        (["--data", "digits", "--split", "middle"], "split"),
        (["--data", "digits", "--normalize", "purple"], "purple"),
        (["--data", "digits", "--layers", "none.such"], "none.such"),
        (["--data", "digits", "--arch", "resnet-5000"], "resnet-5000"),
        (["--data", "digits", "--device", "cuda:77"], "cuda:77"),
        (["--data", "digits", "--device", "meta"], "meta"),
        (["--data", "digits", "--pool", "grid:²"], "choose gap"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(trained, tmp_path, words, message):
    import re

    last = trained / "checkpoints" / "epoch-0002.pt"
    text = run("analyze", last, "--out", tmp_path / "out", *words, code=2)
    line = text.strip().splitlines()[-1]
    assert line.startswith("wgeo: ")
    assert re.search(message, line)
    assert "Traceback" not in text


def test_bad_files_are_one_line(tmp_path):
    truncated = tmp_path / "truncated.pt"
    torch.save({"weight": torch.zeros(1000)}, truncated)
    truncated.write_bytes(truncated.read_bytes()[:500])
    noise = tmp_path / "noise.pt"
    noise.write_bytes(np.random.default_rng(0).bytes(3000))
    (tmp_path / "empty").mkdir()
    for path in (truncated, noise, tmp_path / "empty", tmp_path / "missing.pt"):
        text = run("analyze", path, "--data", "digits", "--out", tmp_path / "out", code=2)
        assert text.strip().splitlines()[-1].startswith("wgeo: ")


def test_unwritable_folder_is_reported_before_any_work(trained, tmp_path):
    (tmp_path / "file").write_text("")
    last = trained / "checkpoints" / "epoch-0002.pt"
    text = run("analyze", last, "--data", "digits", "--out", tmp_path / "file" / "x", code=2)
    assert "Cannot write into" in text


def test_debug_shows_the_traceback(tmp_path):
    words = ["analyze", str(tmp_path / "x.pt"), "--data", "digits", "--out", str(tmp_path)]
    for place in (["--debug", *words], [*words, "--debug"]):
        result = CliRunner().invoke(main, place)
        assert result.exit_code == 1
        assert result.exc_info[0].__name__ == "CheckpointError"


def test_unexpected_errors_are_one_line(monkeypatch, tmp_path):
    def broken(*_, **__):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("wgeo.checkpoints.load_checkpoint", broken)
    words = ["analyze", __file__, "--data", "digits", "--out", tmp_path]
    text = run(*words, code=2)
    assert text.startswith("wgeo: Unexpected error (ZeroDivisionError: division")
    assert len(text.splitlines()) == 1
    result = CliRunner().invoke(main, [str(word) for word in [*words, "--debug"]])
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    "words",
    [
        ["demo", "--out", "x"],
        ["train", "--arch", "mlp", "--dataset", "digits", "--out", "x"],
        ["analyze", "x.pt", "--data", "digits", "--out", "x"],
    ],
)
def test_a_negative_seed_is_refused(words):
    assert "--seed" in run(*words, "--seed", "-1", code=2)


def test_epochs_to_save_are_numbers(tmp_path):
    out = tmp_path / "run"
    words = ["train", "--arch", "mlp", "--dataset", "digits", "--out", out]
    for bad in ("soon", "²", "1,,2"):
        assert "not a whole number" in run(*words, "--checkpoints", bad, code=2)
    assert "epochs from 0 to 60" in run(*words, "--checkpoints", "0,61", code=2)
    assert "form name=value" in run(*words, "--option", "width", code=2)
    assert not out.exists()


def test_train_command_accepts_decayed_and_precision(tmp_path):
    text = run(
        *("train", "--arch", "isoresnet", "--dataset", "digits", "--out", tmp_path),
        *("--option", "width=4", "--option", "depth=1", "--samples", "40", "--epochs", "1"),
        *("--decayed", "unnormalized", "--precision", "bfloat16"),
    )
    assert "Training accuracy" in text
    recipe = json.loads((tmp_path / "history.json").read_text())["settings"]["training"]
    assert (recipe["decayed"], recipe["precision"]) == ("unnormalized", "bfloat16")


@pytest.mark.usefixtures("undrawn")
def test_the_next_command_can_be_pasted(tmp_path):
    out = tmp_path / "a run"
    text = run(
        *("train", "--arch", "mlp", "--dataset", "digits", "--out", out, "--epochs", "1"),
        *("--option", "width=8", "--option", "depth=1", "--samples", "40", "--image-size", "6"),
        *("--normalize", "0.5;0.25", "--seed", "3", "--skip-broken"),
    )
    words = shlex.split(text.split("Next: ")[1])
    assert words[:2] == ["wgeo", "analyze"]
    run(*words[1:], "--no-report", "--bootstrap", "0", *PLAIN)
    record = json.loads((out / "analysis" / "analysis.json").read_text())
    assert record["provenance"]["samples"] == 40
    assert record["seed"] == 3
    assert words[words.index("--normalize") + 1] == "0.5;0.25"
    assert "--skip-broken" in words


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("analyze x.pt --data digits", "fewer `--samples` or `--pool gap` or a smaller `--batch"),
        ("ufm ce", "use a smaller `--per-class`."),
        ("list solvers", "Not enough memory."),
    ],
)
def test_a_lack_of_memory_is_answered_with_options_of_the_command(words, advice, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr("wgeo.cli.analysis.require_inputs", full)
    monkeypatch.setattr("wgeo.ufm.fit_ce", full)
    monkeypatch.setattr("wgeo.cli.preparing.say", full)
    out = ["--out", "x"] if words.startswith("analyze") else []
    assert advice in run(*words.split(), *out, code=2)


def test_store_with_several_checkpoints_is_refused_before_a_folder_is_made(tmp_path):
    words = ["analyze", "x.pt", "y.pt", "--data", "digits", "--out", tmp_path / "out"]
    assert "--store is for a single" in run(*words, "--store", tmp_path / "s", code=2)
    assert not (tmp_path / "out").exists()


def test_solvers_are_parsed():
    assert solver_of("exact:tolerance=1e-3").tolerance == 1e-3
    with pytest.raises(ArgumentError, match="name=value"):
        solver_of("exact:fast")
    with pytest.raises(ArgumentError, match=r"does not take wings; its options are .*toler"):
        solver_of("exact:wings=2")
    with pytest.raises(ArgumentError, match="wrong type"):
        solver_of("exact:tolerance=tight")

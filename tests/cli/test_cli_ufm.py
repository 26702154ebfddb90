"""``wgeo ufm`` on the command line: tables, records, figures, and mistakes in one line."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from command_line import run
from matplotlib.image import imread

from wgeo import data
from wgeo.errors import DataError
from wgeo.plots.models import model, model_layers, model_means, model_starts, model_terms
from wgeo.ufm import closed_form_ce, fit_deep, fit_mse, landscape
from wgeo.ufm.certify import evaluate
from wgeo.ufm.record import arrays_of, cosines, record_of
from wgeo.ufm.spectral import spectral_optimum


def shown(text, name):
    """The number that a row of the table has."""
    (found,) = re.findall(rf"^\s*{re.escape(name)}\s+(\S+)\s*$", text, re.MULTILINE)
    return float(found)


@pytest.mark.parametrize("name", ["ce", "mse", "deep", "mufm"])
def test_help_teaches_by_example(name):
    text = run("ufm", name, "--help")
    assert f"wgeo ufm {name}" in text.split("Example")[1]
    assert "F = (1/" in text
    assert name in run("ufm", "--help")


def test_cross_entropy_is_printed_and_written(tmp_path):
    words = ["ufm", "ce", "--classes", "3", "--per-class", "5", "--weight-decay", "5e-3"]
    text = run(*words, "--landscape", "--out", tmp_path / "ce")
    known = closed_form_ce(3, 5, 5e-3, 5e-4)
    assert shown(text, "objective") == pytest.approx(known.value, rel=1e-11)
    assert shown(text, "lower bound") == pytest.approx(known.value, rel=1e-11)
    assert "Certificate: global." in text
    assert "Smallest Hessian eigenvalues" in text
    record = json.loads((tmp_path / "ce" / "solution.json").read_text())
    assert record["command"] == f"wgeo {' '.join(words)} --landscape --out {tmp_path / 'ce'}"
    assert record["objective"] == pytest.approx(sum(record["terms"].values()), rel=1e-14)
    assert record["landscape"]["verdict"] == "global"
    cosine = np.array(record["view"]["means"])
    np.testing.assert_allclose(cosine, 1.5 * np.eye(3) - 0.5, atol=1e-12)
    with np.load(tmp_path / "ce" / "solution.npz") as arrays:
        assert (arrays["W1"] ** 2).sum() == pytest.approx(known.rho)
        assert arrays["H"].shape == (3, 15)
    assert imread(tmp_path / "ce" / "model.png").shape[2] == 4
    assert "<svg" in (tmp_path / "ce" / "model.svg").read_text()


def test_imbalanced_squared_loss_with_every_kind_of_bias():
    values = {}
    for bias in ("none", "free", "0.1"):
        text = run(
            *("ufm", "mse", "--counts", "6,3,2", "--weight-decay", "1e-2"),
            *("--feature-decay", "5e-3", "--bias", bias),
        )
        assert "Certificate: global." in text
        values[bias] = shown(text, "objective")
    assert values["none"] == pytest.approx(0.038742956790, abs=6e-13)
    assert values["free"] == pytest.approx(0.024760324138, abs=6e-13)
    assert values["0.1"] == pytest.approx(0.035992956790, abs=6e-13)


def test_a_search_says_where_its_starts_ended(tmp_path):
    text = run(
        *("ufm", "deep", "--classes", "2", "--per-class", "3", "--layers", "2", "--dim", "4"),
        *("--weight-decay", "4e-3", "--feature-decay", "1.3333333333333333e-3"),
        *("--restarts", "4", "--out", tmp_path),
    )
    assert shown(text, "objective") == pytest.approx(0.011967914131, abs=1e-8)
    assert "best of 4 starts" in text
    assert re.search(r"W2 .*", text)
    assert "DNC3" in text
    record = json.loads((tmp_path / "solution.json").read_text())
    assert len(record["values"]) == 4
    assert [layer["deep"]["layer"] for layer in record["curve"]] == [1, 2]


def test_lower_rank_is_below_deep_neural_collapse_and_both_are_printed():
    text = run(
        *("ufm", "deep", "--classes", "6", "--per-class", "1", "--layers", "4"),
        *("--weight-decay", "1e-3", "--feature-decay", "1e-3", "--method", "lower-rank"),
    )
    assert shown(text, "objective") == pytest.approx(0.014432255569, abs=6e-13)
    assert shown(text, "deep neural collapse") == pytest.approx(0.014981934755, abs=6e-13)


def test_layers_may_have_separate_decays():
    text = run(
        *("ufm", "deep", "--counts", "6,3,2", "--layers", "2", "--activation", "linear"),
        *("--weight-decay", "3e-3,2e-3", "--feature-decay", "1e-3"),
    )
    assert shown(text, "objective") == pytest.approx(0.012281023594, abs=6e-13)


def test_zero_samples_are_all(monkeypatch):
    """As in ``wgeo analyze``."""
    limits = []

    def load(source, *, limit, **_):
        limits.append(limit)
        raise DataError("enough")

    monkeypatch.setattr(data, "load_images", load)
    run("ufm", "mufm", "--samples", "0", code=2)
    run(*["train", "--arch", "mlp", "--dataset", "digits", "--samples", "0", "--out", "x"], code=2)
    run(*["train", "--arch", "mlp", "--dataset", "digits", "--samples", "7", "--out", "x"], code=2)
    assert limits == [None, None, 7]


def test_mufm_of_digits(tmp_path):
    text = run(
        *("ufm", "mufm", "--samples", "60", "--layers", "3", "--restarts", "0"),
        *("--bias", "free", "--out", tmp_path),
    )
    assert "Certificate:" in text
    record = json.loads((tmp_path / "solution.json").read_text())
    assert record["model"] == "mufm"
    assert len(record["curve"]) == 4
    assert record["curve"][-1]["collapse"]["nc1"] < record["curve"][0]["collapse"]["nc1"]
    with np.load(tmp_path / "solution.npz") as arrays:
        assert arrays["X"].shape == (64, 60)
    assert (tmp_path / "model.png").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ce", "--classes", "1"], "at least two classes"),
        (["ce", "--per-class", "0"], "at least two classes"),
        (["ce", "--counts", "3,x"], "--counts: 'x' is not a whole number"),
        (["ce", "--counts", "3,0"], "at least one sample each"),
        (["ce", "--dim", "0"], "dim must be a whole number of at least 1"),
        (["ce", "--weight-decay", "0"], "weight_decay must be a positive number"),
        (["mse", "--feature-decay", "-1"], "feature_decay must be a positive number"),
        (["mse", "--bias", "some"], "--bias: 'some' must be none, free or a number"),
        (["mse", "--bias", "-1"], "a decay >= 0, not -1"),
        (["mse", "--bias", "nan"], "a decay >= 0, not nan"),
        (["ce", "--method", "closed", "--counts", "3,2"], "balanced"),
        (["deep", "--weight-decay", "1e-3,1e-3"], "2 numbers for 3 layers"),
        (["deep", "--weight-decay", "heavy"], "'heavy' must be a number"),
        (["deep", "--layers", "0"], "1 numbers for 0 layers"),
        (["deep", "--method", "lower-rank", "--layers", "2"], "K >= 3 with L >= 4"),
        (["deep", "--method", "lower-rank", "--bias", "free"], "without a bias"),
        (["deep", "--method", "lower-rank", "--seed", "0"], "no random starts: leave out --seed."),
        (
            ["deep", "--method", "lower-rank", "--restarts", "3", "--seed", "1"],
            "leave out --restarts and --seed.",
        ),
        (["mufm", "--data", "nowhere"], "nowhere"),
        (["mufm", "--transport", "0"], "transport"),
        (["ce", "--seed", "-1"], "--seed"),
        (["ce", "--out", "/dev/null/x"], "Cannot write"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(words, said):
    text = run("ufm", *words, code=2)
    line = text.strip().splitlines()[-1]
    assert said in line
    assert "Traceback" not in text


# --- records and figures ---------------------------------------------------------------------


def test_vanishing_classes_have_no_cosine():
    """Minority collapse: the smaller class's mean is zero, and the figure says so."""
    labels = np.repeat([0, 1], [50, 2])
    record = record_of(fit_mse(labels, dim=2, weight_decay=0.04, feature_decay=0.04))
    assert record["view"]["means"] == [[1.0, None], [None, None]]
    texts = [text.get_text() for text in model_means(record).texts]
    assert texts.count("–") == 3
    json.dumps(record, allow_nan=False)
    nothing = fit_mse([0, 1], dim=2, weight_decay=1.0, feature_decay=1.0)
    assert "zero" in model_means(record_of(nothing)).texts[-1].get_text()
    model(record_of(nothing))
    alone = model_means({**record, "view": {"means": [[1.0]]}})  # a record written by hand
    assert "simplex" not in alone.texts[0].get_text()


def test_cosines():
    rows = np.array([[2.0, 0, 0], [0, 3, 0], [-1, 0, 0], [1, 1, 0], [0, 0, 0]])
    found = cosines(rows)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(
        found[:4, :4],
        [[1, 0, -1, half], [0, 1, 0, half], [-1, 0, 1, -half], [half, half, -half, 1]],
        atol=1e-15,
    )
    assert np.isnan(found[4]).all()


def test_figures_show_the_values_of_the_record():
    given = {"dim": 3, "weight_decays": [4e-3] * 2, "feature_decay": 2e-3, "activation": "relu"}
    found = fit_deep([0, 0, 1, 1], restarts=3, **given)
    record = record_of(found, landscape(found))
    values = model_starts(record).get_lines()[0].get_ydata()
    bound = spectral_optimum(found.problem).value
    np.testing.assert_allclose(values, np.maximum(np.array(found.values) - bound, 1e-16))
    lengths = [bar.get_width() for bar in model_terms(record).patches]
    np.testing.assert_allclose(lengths, list(found.terms.values()))
    names = [text.get_text() for text in model_layers(record).get_legend().get_texts()]
    assert names == ["DNC1", "DNC2", "DNC3"]
    assert len(model(record).axes) == 5  # four panels and the color bar
    closed = record_of(fit_deep([0, 0, 1, 1], method="closed", **given))
    assert "no starts" in model_starts(closed).texts[-1].get_text()
    again = evaluate(found.problem, **_factors(arrays_of(found)))
    assert again.objective == found.objective
    assert len(model(found).axes) == 5


def _factors(arrays):
    return {"H": arrays["H"], "weights": [arrays["W1"], arrays["W2"]]}

"""Collapse of whole networks: resampled, streamed, of every architecture; from the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau
from torch import nn

import wgeo
from wgeo import models
from wgeo.errors import ArgumentError, FeatureError
from wgeo.neural_collapse import LayerCollapse, bootstrap, collapse_of
from wgeo.neural_collapse.depth import _tau
from wgeo.neural_collapse.metrics import RANK_TOLERANCE
from wgeo.neural_collapse.moments import WEIGHTS
from wgeo.trajectory import Layer, Trajectory

METRICS = [
    *("nc1", "nc1_quotient", "nc2_equinorm", "nc2_equiangle", "nc2_etf", "cdnv"),
    *("ncc_accuracy", "ncc_mismatch", "within", "between", "mean_angle", "max_coherence", "rank"),
]
SMALL = {  # one of each kind that is quick to build and run
    "mlp": {"width": 9, "depth": 3},
    "resmlp": {"width": 9, "depth": 2, "hidden": 5},
    "vgg": {"width": 4, "depth": 4},
    "isoresnet": {"width": 6, "depth": 3},
    "isoplain": {"width": 6, "depth": 2},
    "cifar_resnet8": {"width": 4},
    "vit": {"width": 32, "depth": 2, "hidden": 24},
}


def clusters(rng, n=90, K=4, d=6):
    y = rng.permutation(np.arange(n) % K)
    return rng.normal(size=(K, d))[y] + rng.normal(size=(n, d)) * rng.uniform(0.3, 1, d), y


def assert_same(layer: LayerCollapse, other: LayerCollapse, rtol: float) -> None:
    for metric in METRICS:
        value, expected = getattr(layer, metric), getattr(other, metric)
        assert (value is None) == (expected is None), metric
        if value is not None:
            assert value == pytest.approx(expected, rel=rtol, abs=1e-12), metric


# --- the bootstrap --------------------------------------------------------------------------------


def replicates(H, y, predicted, drawn, weights="uniform"):
    layer = Layer("features", H)
    return bootstrap.bootstrap_replicates(layer, y, predicted, drawn, weights, RANK_TOLERANCE)


@pytest.mark.parametrize("d", [1, 3, 40, 700])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_replicates_equal_metrics_of_the_drawn_rows(d, weights, rng, monkeypatch):
    H, y = clusters(rng, d=d)
    y[y == 3] = np.where(rng.random((y == 3).sum()) < 0.8, 2, 3)  # of unequal sizes
    rows = np.unique(y, return_inverse=True)[1]
    predicted = np.where(rng.random(len(y)) < 0.7, rows, -1)
    drawn = bootstrap.stratified_counts(rows, 6, rng)
    for held in (bootstrap._REPLICATE_ENTRIES, 1):  # all together, and one at a time
        monkeypatch.setattr(bootstrap, "_REPLICATE_ENTRIES", held)
        found = replicates(H, rows, predicted, drawn, weights)
        assert len(found) == 6
        for layer, times in zip(found, drawn, strict=True):
            again = np.repeat(np.arange(len(y)), times)
            expected = collapse_of(
                H[again], rows[again], None, np.where(predicted == -1, 99, predicted)[again],
                weights=weights,
            )  # fmt: skip
            assert_same(layer, expected, rtol=1e-9)


def test_replicates_do_not_depend_on_the_block_size(rng, monkeypatch):
    H, y = clusters(rng)
    drawn = bootstrap.stratified_counts(y, 3, rng)
    whole = replicates(H, y, None, drawn)
    monkeypatch.setattr("wgeo.arrays.checks.CHUNK_ENTRIES", 50)
    for layer, other in zip(replicates(H, y, None, drawn), whole, strict=True):
        assert_same(layer, other, rtol=1e-10)


def test_bootstrap_draws_within_classes(rng):
    y = np.array([0] * 5 + [1] + [2] * 30)
    drawn = bootstrap.stratified_counts(y, 400, rng)
    for k, n in enumerate((5, 1, 30)):
        assert (drawn[:, y == k].sum(1) == n).all()
    assert (drawn[:, 5] == 1).all()
    # each of n samples is missed with probability (1 - 1/n)^n
    assert np.mean(drawn[:, y == 2] == 0) == pytest.approx((1 - 1 / 30) ** 30, abs=0.02)


def test_constant_and_collapsed_layers_have_replicates_too(rng):
    y = np.arange(40) % 4
    drawn = bootstrap.stratified_counts(y, 3, rng)
    for layer in replicates(np.full((40, 5), 7.3), y, y, drawn):
        assert layer.nc1 is layer.nc2_etf is layer.ncc_accuracy is None
        assert layer.within == layer.between == 0
    for layer in replicates(np.eye(4)[y], y, y, drawn):
        assert layer.nc1 == layer.cdnv == layer.ncc_mismatch == 0
        assert layer.ncc_accuracy == 1


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=9))
def test_tau_matches_scipy(values):
    peer = kendalltau(np.arange(len(values)), values).statistic
    found = _tau(np.array(values, float), 0.0)
    assert found is None if np.isnan(peer) else found == pytest.approx(peer)


def test_three_class_means_are_always_120_degrees_apart(rng):
    """Their mean angle is the same at every layer, whatever its last digit says."""
    layers = [rng.normal(size=(60, 5)) for _ in range(6)]
    angle = wgeo.collapse(Trajectory.from_arrays(layers, np.arange(60) % 3)).separation
    assert (angle.kendall_tau, angle.monotone, angle.reached) == (None, True, None)


# --- one entry for what is held and for what streams by -------------------------------------------


@pytest.mark.parametrize("weights", ["frequency", "sample_mean"])
def test_batches_give_the_same_result_as_a_trajectory(weights, rng):
    H, y = clusters(rng)
    y[y == 3] = np.where(rng.random((y == 3).sum()) < 0.8, 2, 3)  # of unequal sizes
    traj = Trajectory.from_arrays([H, 2 * H[:, :3]], y)
    expected = wgeo.collapse(traj, weights=weights, ood={"layer0": H, "layer1": H[:, :3]})
    assert expected.weights == weights
    batches = [
        ({layer.name: layer.features[part] for layer in traj.layers}, y[part])
        for part in (slice(0, 20), slice(20, None))
    ]
    outside = {"layer0": H, "layer1": H[:, :3]}
    for source in (batches, lambda: iter(batches), iter(batches)):
        found = wgeo.collapse(source, weights=weights, ood=outside, keep=2**20)
        assert found.weights == weights
        for layer, other in zip(found.layers, expected.layers, strict=True):
            assert_same(layer, other, rtol=1e-10)
            assert layer.nc5 == pytest.approx(other.nc5)


def test_options_that_do_not_fit_the_source_are_refused(rng):
    H, y = clusters(rng)
    traj = Trajectory.from_arrays([H], y)
    with pytest.raises(ArgumentError, match="keep: options of a stream"):
        wgeo.collapse(traj, keep=0)
    with pytest.raises(ArgumentError, match="cannot be resampled"):
        wgeo.collapse([({"h": H}, y)], bootstrap=10)
    with pytest.raises(ArgumentError, match="no option kept"):
        wgeo.collapse([({"h": H}, y)], kept=10)
    for source in (3, nn.Linear(2, 2)):
        with pytest.raises(ArgumentError, match=f"or batches.*not {type(source).__name__}"):
            wgeo.collapse(source)
    for batch, said in (((torch.from_numpy(H), y), "Tensor"), (H, "ndarray"), (({},), "dict")):
        with pytest.raises(ArgumentError, match=f"wgeo.stream.*begins with {said}"):
            wgeo.collapse([batch])
    with pytest.raises(ArgumentError, match="not -1"):
        wgeo.collapse(traj, bootstrap=-1)
    for outside, said in (({"g": H}, "'h' are missing"), ({"h": H[:, :2]}, r"shape \(90, 2\)")):
        with pytest.raises(FeatureError, match=said):
            wgeo.collapse([({"h": H}, y)], ood=outside)


# --- every architecture ---------------------------------------------------------------------------


def network(name, activation="relu", **more):
    options = {"num_classes": 4, "in_channels": 1, "image_size": 8, **SMALL[name], **more}
    return models.build(name, activation=activation, **options)


def pictures(rng, n=60, K=4):
    """Random images about K patterns, and a labelled pair of them."""
    y = np.arange(n) % K
    x = 0.6 * rng.random((K, 1, 8, 8))[y] + 0.4 * rng.random((n, 1, 8, 8))
    return torch.from_numpy(x.astype(np.float32)), y


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "sigmoid", "silu"])
@pytest.mark.parametrize("name", SMALL)
def test_every_network_is_measured_at_every_block(name, activation, rng):
    net, images = network(name, activation), pictures(rng)
    found = wgeo.collapse(wgeo.trace(net, images))
    names = wgeo.blocks(net, images)
    last = ["penultimate"] if name == "vit" else []  # its classifier reads a norm's output
    assert [layer.name for layer in found.layers] == ["input", "stem", *names, *last]
    assert len(names) == SMALL[name].get("depth", 3)
    for layer in found.layers:
        assert layer.nc1 > 0
        assert 0 <= layer.ncc_accuracy <= 1
    assert found.progress["nc1"].kendall_tau is not None
    assert 0 <= found.layers[-1].nc3 <= 2


def test_class_token_is_constant_at_the_stem(rng):
    net, images = network("vit"), pictures(rng)
    found = wgeo.collapse(wgeo.trace(net, images, pool="cls"), bootstrap=5)
    stem, first, last, penultimate = found.layers[1:]
    assert penultimate.name == "penultimate"
    assert stem.within == stem.between == 0
    assert stem.undefined["nc1"] == "the class means coincide"
    assert first.nc1 > 0
    assert last.nc1 > 0
    assert found.progress["nc1"].kendall_tau in (-1, 1)  # of two layers
    assert found.progress["nc1"].interval is not None


def test_network_in_train_mode_is_measured_in_eval_mode(rng):
    net, images = network("vgg"), pictures(rng)
    with torch.no_grad():
        for _ in range(3):
            net.train()(images[0])  # statistics other than a batch's own
    net.train()
    found = wgeo.collapse(wgeo.trace(net, images))
    assert net.training
    for layer, other in zip(
        found.layers, wgeo.collapse(wgeo.trace(net.eval(), images)).layers, strict=True
    ):
        assert layer == other


def test_features_traced_in_train_mode_are_refused(rng):
    x, y = pictures(rng)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5)).train()

    def batches():
        for part in (slice(0, 30), slice(30, None)):
            yield {"h": net(x[part])}, y[part]

    with pytest.raises(FeatureError, match="eval mode"):
        wgeo.collapse(batches, keep=0)
    net.eval()
    assert wgeo.collapse(batches, keep=0).layers[0].nc1 > 0


@pytest.mark.parametrize("name", ["cifar_resnet8", "vgg", "vit"])
def test_streamed_collapse_equals_traced_collapse(name, rng):
    net, (x, y) = network(name).train(), pictures(rng)
    expected = wgeo.collapse(wgeo.trace(net, (x, y)))
    for keep in (0, 2**20):
        found = wgeo.collapse(lambda: wgeo.stream(net, (x, y), batch_size=7), keep=keep)
        assert found.accuracy == expected.accuracy
        for layer, other in zip(found.layers, expected.layers, strict=True):
            assert (layer.name, layer.stage) == (other.name, other.stage)
            # Sums within the network depend on the batch; a norm's output amplifies the difference.
            assert_same(layer, other, rtol=1e-4 if layer.name == "penultimate" else 1e-5)
    assert net.training


def test_network_can_be_used_between_streamed_batches(rng):
    net, (x, y) = network("vgg").eval(), pictures(rng)
    before = net(x[:3])
    batches = wgeo.stream(net, (x, y), batch_size=20)
    first, labels, decided = next(batches)
    assert torch.is_grad_enabled()
    kept = {name: rows.copy() for name, rows in first.items()}
    assert torch.equal(net(x[:3]), before)  # hooks of the stream would write over its features
    assert all(np.array_equal(first[name], kept[name]) for name in kept)
    assert labels.tolist() == y[:20].tolist()
    assert decided.tolist() == net(x[:20]).argmax(1).tolist()
    with pytest.raises(FeatureError, match=r"label 9.*4 classes"):
        next(wgeo.stream(net, (x, np.where(y == 3, 9, y))))
    with pytest.raises(ArgumentError, match="Unknown pool"):
        next(wgeo.stream(net, (x, y), pool="max"))


# --- from the command line ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "pool", "activation", "loss", "analysed"),
    [
        ("vgg", "gap", "tanh", "mse", False),
        ("vit", "cls", "silu", "mse", True),
        ("vit", "gap", "tanh", "ce", False),
        ("mlp", "gap", "sigmoid", "ce", False),
        ("resmlp", "gap", "leaky_relu", "mse", False),
        ("isoresnet", "gap", "silu", "mse", False),
    ],
)
def test_train_and_analyze(arch, pool, activation, loss, analysed, tmp_path):
    from wgeo.cli import main

    def call(*words):
        done = CliRunner().invoke(main, list(map(str, words)))
        assert done.exit_code == 0, done.output

    small = [f"--option={key}={value}" for key, value in SMALL[arch].items()]
    call(
        *("train", "--arch", arch, "--dataset", "digits", "--samples", 60, "--epochs", 1),
        *("--loss", loss, "--activation", activation, "--lr", 0.02, "--out", tmp_path, *small),
    )
    saved = tmp_path / "checkpoints" / "epoch-0001.pt"
    net, images = wgeo.load_checkpoint(saved), wgeo.load_images("digits", limit=60)
    act = models.parts.ACTIVATIONS[activation]
    assert any(type(part) is act for part in net.module.modules())
    found = wgeo.collapse(wgeo.trace(net, images, pool))
    assert [layer.name for layer in found.layers[:2]] == ["input", "stem"]
    assert len(found.layers) == 2 + SMALL[arch]["depth"] + (arch == "vit")
    assert found.layers[-1].nc1 > 0
    assert found.progress["nc1"].kendall_tau is not None
    if analysed:
        call(
            *("analyze", saved, "--data", "digits", "--samples", 60, "--pool", pool),
            *("--bootstrap", 0, "--no-report", "--out", tmp_path / "analysis"),
        )
        record = json.loads((tmp_path / "analysis" / "analysis.json").read_text())
        assert record["provenance"]["arch"] == arch
        for layer, other in zip(record["layers"], found.layers, strict=True):
            assert layer["collapse"]["nc1"] == other.nc1

"""Networks compared with models: known answers if a model generated the network."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest

import wgeo
from wgeo.comparison import compare, entry, predictions
from wgeo.comparison.fitting import Scorer, random_half
from wgeo.comparison.predictions import (
    Errors,
    Procrustes,
    StraightPath,
    TargetSubspace,
    fit_scale,
    layer_times,
    path_predictions,
    simplex_etf_prediction,
)
from wgeo.comparison.result import ClassifierModel
from wgeo.errors import ArgumentError
from wgeo.trajectory import Classifier, Segment
from wgeo.ufm import fit_mufm
from wgeo.ufm.mufm.reduced_mse import ReducedMSE, Statistics


def centred(features):
    return features - features.mean(0)


def fitted(shape, measured, *, rotate):
    """The Procrustes fit of one centred cloud to another, and its target subspace."""
    mean = np.zeros(measured.shape[1])
    target = TargetSubspace.of_layer(measured, mean) if rotate else None
    product = shape.T @ target.project(measured) if rotate else float(np.vdot(shape, measured))
    return Procrustes.fit(float(np.vdot(shape, shape)), product, target), target


AT = (0.0, 0.3, 0.6, 0.8, 1.0)


def clusters(rng, n=120, d=6, classes=3):
    labels = np.arange(n) % classes
    return rng.normal(size=(classes, d))[labels] + rng.normal(size=(n, d)), labels


def of_mufm(rng, drift=0.0, growth=0.0, noise=0.0, **more):
    """A trajectory that MUFM made, then moved, scaled and blurred layer by layer."""
    x, labels = clusters(rng, **more)
    made = fit_mufm(x, labels, layers=4, weight_decay=0.3, transport=0.2, bias="free")
    path = [(1 - t) * made.X + t * made.H for t in AT]
    layers = [
        (1 + growth * i) * layer
        + i * drift * rng.normal(size=layer.shape[1])
        + i * noise * rng.normal(size=layer.shape)
        for i, layer in enumerate(path)
    ]
    return wgeo.Trajectory.from_arrays(layers, labels), made


def test_network_that_is_mufm_is_explained_and_its_settings_recovered(rng):
    traj, made = of_mufm(rng, n=1200)
    found = compare(traj)
    assert found.held_out.r2 > 0.95
    assert found.held_out.r2_means > 0.97
    assert [layer.time for layer in found.mufm] == pytest.approx(AT, abs=0.05)
    for layer, seen in zip(found.mufm[1:], found.network[1:], strict=True):
        assert layer.r2 > 0.97
        assert layer.collapse.nc1 == pytest.approx(seen.nc1, rel=0.15)
        assert layer.w2 < 0.1
    for name in ("weight_decay", "mu"):
        ratio = found.solution.settings[name] / made.settings[name]
        assert 0.5 < ratio < 2


def test_comparison_with_the_generating_model_is_exact(rng):
    traj, made = of_mufm(rng)
    found = compare(traj, made)
    assert all(layer.relative_error < 0.01 for layer in found.mufm[1:])  # by the search for times
    assert all(layer.gain == pytest.approx(1, abs=1e-2) for layer in found.mufm)
    assert all(layer.w2 < 0.01 for layer in found.mufm)
    assert found.mufm[-1].missed < 1e-14
    assert found.mufm[-1].w2 < 1e-7
    assert found.held_out.r2 is None
    assert found.solution is made


def test_drift_and_scale_of_the_network_do_not_affect_mufm(rng):
    plain, made = of_mufm(np.random.default_rng(5))
    moved, _ = of_mufm(np.random.default_rng(5), drift=3.0, growth=0.7)
    for i, (a, b) in enumerate(
        zip(compare(plain, made).mufm, compare(moved, made).mufm, strict=True)
    ):
        assert b.time == pytest.approx(AT[i], abs=5e-3)
        assert b.gain == pytest.approx(1 + 0.7 * i, rel=1e-2)
        assert b.missed == pytest.approx(a.missed, abs=1e-5)


def test_rotating_the_network_does_not_affect_mufm(rng):
    """Rotating all layers alike changes nothing; rotating all but the first changes little."""
    traj, _ = of_mufm(rng, n=300, noise=0.05)
    layers = [layer.features for layer in traj.layers]
    turns = [np.linalg.qr(rng.normal(size=(6, 6)))[0] for _ in layers]
    plain = compare(traj)
    whole = compare(wgeo.Trajectory.from_arrays([h @ turns[0] for h in layers], traj.labels))
    each = compare(
        wgeo.Trajectory.from_arrays(
            [layers[0], *(h @ q for h, q in zip(layers[1:], turns[1:], strict=True))], traj.labels
        )
    )
    for found in (whole, each):
        assert found.held_out.r2 == pytest.approx(plain.held_out.r2, abs=1e-3)
        for a, b in zip(plain.mufm, found.mufm, strict=True):
            assert b.missed == pytest.approx(a.missed, abs=1e-3)
            assert b.collapse.nc1 == pytest.approx(a.collapse.nc1, rel=0.02)
    assert each.geodesic[1].missed > 10 * plain.geodesic[1].missed  # the line has no such freedom


def test_random_labels_are_not_explained(rng):
    """If layers are unrelated to the labels, the held-out score of MUFM is not above 0."""
    x = rng.normal(size=(300, 5))
    layers = [x, *(x + 0.5 * i * rng.normal(size=x.shape) for i in (1, 2, 3))]
    found = compare(wgeo.Trajectory.from_arrays(layers, rng.integers(0, 3, 300)))
    assert found.held_out.r2 < 0.05


def test_a_straight_network_is_the_line_at_any_speed(rng):
    first, last = rng.normal(size=(2, 40, 3))
    traj = wgeo.Trajectory.from_arrays(
        [(1 - t) * first + t * last for t in (0, 0.1, 0.7, 1)], np.arange(40) % 4
    )
    found = compare(traj, mufm=False)
    assert [layer.time for layer in found.geodesic] == pytest.approx([0, 0.1, 0.7, 1])
    assert all(layer.missed < 1e-20 for layer in found.geodesic)
    by_length = compare(traj, mufm=False, time="length").geodesic
    assert [layer.time for layer in by_length] == pytest.approx([0, 0.1, 0.7, 1])
    even = compare(traj, mufm=False, time="uniform").geodesic
    assert even[1].time == pytest.approx(1 / 3)
    assert even[1].missed > 0.01
    assert found.solution is None
    assert "mufm=False" in found.skipped


def test_the_plain_model_is_the_nearest_simplex(rng):
    """Against a search over rotations; its own metrics are those of complete collapse."""
    x, labels = clusters(rng, d=5)
    frame = simplex_etf_prediction(x, x, labels)
    traj = wgeo.Trajectory.from_arrays([x, x + rng.normal(size=x.shape)], labels)
    layer = compare(traj, mufm=False).ufm[0]
    assert layer.collapse.nc1 == pytest.approx(0, abs=1e-12)
    assert layer.collapse.nc2_etf == pytest.approx(0, abs=1e-7)
    means = np.stack([x[labels == k].mean(0) for k in range(3)])
    error = np.sum((frame.features[np.arange(3)] - means) ** 2)
    simplex = np.linalg.svd(np.eye(3) - 1 / 3)[0][:, :2]
    for _ in range(200):
        turned = simplex @ np.linalg.qr(rng.normal(size=(5, 2)))[0].T
        spread = means - means.mean(0)
        size = np.sum(turned * spread) / np.sum(turned**2)
        assert np.sum((size * turned - spread) ** 2) >= error - 1e-12
    assert simplex_etf_prediction(x[:, :1], x[:, :1], labels) is None


def test_errors_match_explicit_sums(rng):
    x, labels = clusters(rng, n=30)
    measured, said = x + rng.normal(size=x.shape), 1.3 * x + 0.2
    errors = Errors.of(said, x, measured, labels)
    assert errors.model == pytest.approx(np.sum((said - measured) ** 2))
    assert errors.baseline == pytest.approx(np.sum((x - measured) ** 2))
    assert errors.variance == pytest.approx(np.sum((measured - measured.mean(0)) ** 2))
    by_class = sum(
        10 * np.sum((said[labels == k].mean(0) - measured[labels == k].mean(0)) ** 2)
        for k in range(3)
    )
    assert errors.model_means == pytest.approx(by_class)


def test_a_procrustes_fit_is_the_nearest(rng):
    """Against scales on a grid and rotations at random."""
    shape, measured = centred(rng.normal(size=(20, 3))), centred(rng.normal(size=(20, 3)))
    scaled, turned = (fitted(shape, measured, rotate=rotate)[0](shape) for rotate in (False, True))
    gains = np.linspace(0, 2, 2001)
    best = min(np.sum((g * shape - measured) ** 2) for g in gains)
    assert np.sum((scaled - measured) ** 2) == pytest.approx(best, rel=1e-5)
    error = np.sum((turned - measured) ** 2)
    for _ in range(300):
        q = shape @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
        gain = max(np.sum(q * measured) / np.sum(q**2), 0)
        assert np.sum((gain * q - measured) ** 2) >= error - 1e-9


@pytest.mark.parametrize("at", [None, AT])
def test_scores_match_those_computed_from_the_features(at, rng):
    """Its moments against predictions formed sample by sample."""
    traj, _ = of_mufm(rng, drift=1.0, growth=0.3, noise=0.2)
    layers = [layer.features for layer in traj.layers]
    labels, half = traj.labels, random_half(traj.labels, 0)
    stats = Statistics.of(layers[0][half], labels[half], 3)
    scorer = Scorer([layer[~half] for layer in layers], labels[~half], stats.basis, at)
    point = ReducedMSE(stats, 0.05, 0.2, 0.0).at(rng.normal(size=(3, len(stats.s))))
    x, y = layers[0][~half], np.eye(3)[labels[~half]]
    last = point.features(x @ stats.basis, point.w, y) @ stats.basis.T
    segment = Segment(0, tuple("abcde"), tuple(layer[~half] for layer in layers))
    shares = [
        np.sum((prediction.features[:] - layer) ** 2) / np.sum(centred(layer) ** 2)
        for prediction, layer in zip(
            islice(path_predictions(segment, at, StraightPath(x, last)), 1, None),
            segment.arrays[1:],
            strict=True,
        )
    ]
    assert scorer.unexplained_variance(point.w, 0.05) == pytest.approx(np.mean(shares), rel=1e-9)


def test_a_network_that_moves_along_its_classifier_is_explained_by_it(rng):
    """MUFM cannot know which way the classifier looks; given it, the features follow."""
    x, labels = clusters(rng, n=400, d=12)
    weight = rng.normal(size=(3, 12))
    last = ClassifierModel(0.4 * (weight - weight.mean(0)), 0.3).features(x, labels)
    path = [(1 - t) * centred(x) + t * last + i for i, t in enumerate(AT)]
    network = wgeo.Trajectory.from_arrays(
        path, labels, classifier=Classifier(5 * weight + 3, np.zeros(3))
    )
    found = compare(network)
    assert found.held_out_given.r2 > 0.999
    assert found.held_out_given.r2 > found.held_out.r2 + 0.1
    assert [layer.time for layer in found.given] == pytest.approx(AT, abs=0.02)
    assert found.reading.mu / np.linalg.norm(found.reading.w, 2) ** 2 == pytest.approx(
        0.3 / np.linalg.norm(0.4 * (weight - weight.mean(0)), 2) ** 2, rel=0.3
    )
    assert found.to_dict()["mufm_given"]["held_out_r2"] == found.held_out_given.r2
    alike = Classifier(np.ones((3, 12)), np.zeros(3))
    blind = compare(wgeo.Trajectory.from_arrays(path, labels, classifier=alike))
    assert blind.given == ()
    assert blind.mufm


def test_gain_over_the_line_is_the_ratio_of_unexplained_variances(rng):
    traj, _ = of_mufm(rng, noise=0.2)
    found = compare(traj)
    assert [layer.r2_line for layer in found.geodesic] == [None] * 5
    ends = [found.mufm[0], found.mufm[-1], found.ufm[0]]
    assert [layer.r2_line for layer in ends] == [None] * 3
    for line, layer in list(zip(found.geodesic, found.mufm, strict=True))[1:-1]:
        assert layer.r2_line == pytest.approx(1 - layer.missed / line.missed)


def test_mufm_is_fitted_by_default_if_there_is_a_classifier_and_it_is_fast(rng, monkeypatch):
    traj, _ = of_mufm(rng, n=40)
    assert "No classifier" in compare(traj, mufm=None).skipped
    layers = [layer.features for layer in traj.layers]
    network = wgeo.Trajectory.from_arrays(layers, traj.labels, predictions=traj.labels)
    assert compare(network, mufm=None).mufm
    monkeypatch.setattr(entry, "DEFAULT_SECONDS", 0.0)
    found = compare(network, mufm=None)
    assert found.mufm == ()
    assert "mufm=True" in found.to_dict()["mufm"]["skipped"]
    assert compare(network, mufm=True).mufm


def test_wide_layers_are_rotated_along_their_leading_directions(rng, monkeypatch):
    """Orthogonal whatever the width; as good as the best of all where the layer leads nowhere else.

    A layer that varies in fewer directions than are turned to loses nothing.
    """
    n, d = 60, 40
    shape = centred(rng.normal(size=(n, d)))
    thin = centred(rng.normal(size=(n, 5)) @ rng.normal(size=(5, d)))
    best = fitted(shape, thin, rotate=True)[0]
    monkeypatch.setattr(predictions, "MAX_DIRECTIONS", 8)
    for measured in (thin, centred(thin + 0.1 * rng.normal(size=(n, d)))):
        found, target = fitted(shape, measured, rotate=True)
        rotation = found.rotation(np.eye(d))
        assert np.allclose(rotation @ rotation.T, np.eye(d), atol=1e-12)
        onto = np.vdot(found.rotation(shape) @ target.basis, target.project(measured)) / np.vdot(
            shape, shape
        )
        assert onto == pytest.approx(found.scale, rel=1e-9)
    wide = fitted(shape, thin, rotate=True)[0]
    assert wide.scale == pytest.approx(best.scale, rel=1e-9)
    assert np.allclose(np.sum((wide(shape) - thin) ** 2), np.sum((best(shape) - thin) ** 2))


@pytest.mark.parametrize("n", [30, 320])
def test_constant_wide_layer_is_predicted_as_constant(n, rng):
    """Zeros have no leading direction, whether computed over samples or over features."""
    x, labels = clusters(rng, n=n, d=300)
    dead = np.zeros_like(x)
    assert fitted(centred(x), dead, rotate=True)[0].scale == 0
    found = compare(wgeo.Trajectory.from_arrays([x, dead, x + 1], labels), mufm=False)
    assert found.geodesic[1].gain == 0
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_wide_network_is_explained_as_a_narrow_one(rng):
    """The same features in 300 dimensions instead of 6, turned: exact, as it varies in few."""
    traj, _ = of_mufm(rng, n=90, noise=0.1)
    frame = np.linalg.qr(rng.normal(size=(300, 6)))[0]
    layers = [layer.features @ frame.T for layer in traj.layers]
    narrow, wide = compare(traj), compare(wgeo.Trajectory.from_arrays(layers, traj.labels))
    assert wide.geodesic[1].missed == pytest.approx(narrow.geodesic[1].missed, rel=1e-9)
    assert wide.ufm[0].missed == pytest.approx(narrow.ufm[0].missed, rel=1e-9)
    assert wide.held_out.r2 == pytest.approx(narrow.held_out.r2, abs=1e-6)


def test_held_out_values_of_few_samples_do_not_depend_on_rounding(rng):
    """With fewer samples in a half than features, directions without data are unchanged."""
    x, labels = clusters(rng, n=60, d=40)
    last = 1.5 * x + 2 * np.eye(3, 40)[labels] + 0.1 * rng.normal(size=x.shape)
    found = [
        compare(wgeo.Trajectory.from_arrays([x, (x + last) / 2, h], labels)).held_out
        for h in (last, last * (1 + 1e-15 * rng.normal(size=x.shape)))
    ]
    assert found[0].r2 == pytest.approx(found[1].r2, rel=1e-9)


def test_models_of_permuted_or_rounded_inputs_are_compared(rng):
    traj, _ = of_mufm(rng, n=60)
    x = traj.segments[-1].arrays[0]
    how = {"layers": 4, "weight_decay": 0.3, "transport": 0.2, "bias": "free"}
    free = fit_mufm(x, traj.labels, coupling="free", **how)
    assert not np.array_equal(free.assignment, np.arange(60))
    assert len(compare(traj, free).mufm) == 5
    assert len(compare(traj, fit_mufm(x.astype(np.float16), traj.labels, **how)).mufm) == 5


def test_a_classifier_model_is_the_minimizer_given_w(rng):
    """Its features against a linear solve for all of them, b free."""
    x, labels = clusters(rng, n=9, d=4)
    w, mu = rng.normal(size=(3, 4)), 0.7
    h = ClassifierModel(w, mu).features(x, labels) + x.mean(0)
    y = np.eye(3)[labels]

    def objective(h):
        miss = h @ w.T - y
        return np.sum((miss - miss.mean(0)) ** 2) + mu * np.sum((h - x) ** 2)

    for _ in range(30):
        assert objective(h + 1e-3 * rng.normal(size=h.shape)) > objective(h)


def test_halves_contain_half_of_every_class():
    labels = np.array([0] * 7 + [1] * 4 + [2] * 2)
    half = random_half(labels, 3)
    assert np.bincount(labels[half]).tolist() == [4, 2, 1]
    assert random_half(np.array([0, 0, 1]), 0) is None


def test_identical_layers_are_compared(rng):
    x, labels = clusters(rng)
    found = compare(wgeo.Trajectory.from_arrays([x, x, 2 * x + 1], labels))
    for layer in found.geodesic:
        assert layer.relative_error is None
    json.dumps(found.to_dict(), allow_nan=False)
    assert layer_times(Segment(0, ("a", "b"), (x, x)), "length") == [0, 1]


def test_time_on_a_path_minimizes_the_distance(rng):
    """Against a grid of times and scales."""
    for _ in range(20):
        x, d, m = rng.normal(size=(3, 4)) + 0.5
        t, gain, explained = fit_scale((x @ x, x @ d, d @ d), (x @ m, d @ m), None)
        assert np.sum((gain * (x + t * d) - m) ** 2) == pytest.approx(m @ m - explained)
        for s in np.linspace(0, 1, 41):
            path = x + s * d
            best = max(path @ m, 0) ** 2 / (path @ path)
            assert best <= explained + 1e-9


@pytest.mark.parametrize("kind", ["float32", "one sample a class", "d < K - 1", "wide", "constant"])
def test_degenerate_trajectories_are_compared(kind, rng):
    x, labels = clusters(rng, n=40, d=5, classes=4)
    if kind == "one sample a class":
        x, labels = x[:4], labels[:4]
    elif kind == "d < K - 1":
        x = x[:, :2]
    elif kind == "wide":
        x = rng.normal(size=(40, 100))
    elif kind == "constant":
        x = np.full((40, 5), 3.3)
    dtype = np.float32 if kind == "float32" else np.float64
    layers = [x, x + rng.normal(size=x.shape), 3 * x + rng.normal(size=x.shape)]
    found = compare(wgeo.Trajectory.from_arrays([a.astype(dtype) for a in layers], labels))
    assert (found.solution is None) == (kind == "constant")
    assert bool(found.skipped) == (kind == "constant")
    assert (found.ufm == ()) == (kind == "d < K - 1")
    assert (found.held_out.r2 is None) == (kind in ("constant", "one sample a class"))
    json.dumps(found.to_dict()["mufm"]["layers"], allow_nan=False)


def test_settings_scale_with_the_units_of_the_features(rng):
    traj, _ = of_mufm(rng, noise=0.1)
    other = wgeo.Trajectory.from_arrays(
        [1e4 * layer.features for layer in traj.layers], traj.labels
    )
    a, b = compare(traj), compare(other)
    assert b.held_out.r2 == pytest.approx(a.held_out.r2, abs=1e-6)
    assert b.solution.settings["mu"] * 1e8 == pytest.approx(a.solution.settings["mu"], rel=1e-4)


def test_rows_agree_with_the_record(rng):
    traj, _ = of_mufm(rng, noise=0.1)
    found = compare(traj)
    rows = found.rows()
    assert [row["model"] for row in rows].count("MUFM") == 5
    assert {row["model"] for row in rows} == {"network", "geodesic model", "MUFM", "UFM"}
    said = found.to_dict()["mufm"]["layers"][-1]
    row = next(row for row in rows if row["model"] == "MUFM" and row["layer"] == said["name"])
    assert row["r2"] == said["r2"]
    assert row["nc1"] == said["collapse"]["nc1"]
    assert len(found.to_pandas()) == len(rows)
    assert len(found.record["layers"]) == 5
    assert wgeo.plots.collapse(found, "nc1").lines  # a comparison can be drawn as it is


def test_a_model_of_another_size_is_refused(rng):
    traj, made = of_mufm(rng)
    short = wgeo.Trajectory.from_arrays([layer.features for layer in traj.layers[:3]], traj.labels)
    with pytest.raises(ArgumentError, match="4 layers"):
        compare(short, made)
    few = Classifier(np.eye(2, 6), np.zeros(2))
    layers = [layer.features for layer in traj.layers]
    with pytest.raises(ArgumentError, match="2 rows"):
        compare(wgeo.Trajectory.from_arrays(layers, traj.labels, classifier=few))
    other = fit_mufm(
        layers[0][::-1], traj.labels, layers=4, weight_decay=0.3, transport=0.2, bias="free"
    )
    with pytest.raises(ArgumentError, match="other inputs"):
        compare(traj, other)
    with pytest.raises(ArgumentError, match="'nearest', 'length' or 'uniform'"):
        compare(traj, made, time="fast")

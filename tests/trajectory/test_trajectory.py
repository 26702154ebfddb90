"""What a trajectory promises: rows correspond, spaces are never mixed silently."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from wgeo import Trajectory
from wgeo.arrays.rows import check_features
from wgeo.errors import ArgumentError, FeatureError
from wgeo.trajectory import Layer


def test_equal_widths_form_one_segment(rng):
    arrays = [rng.normal(size=(6, 4)) for _ in range(4)]
    traj = Trajectory.from_arrays(arrays, [0, 1, 2] * 2)
    assert [s.names for s in traj.segments] == [("layer0", "layer1", "layer2", "layer3")]
    assert [(b.source, b.target) for b in traj.blocks][1] == ("layer1", "layer2")
    assert traj.layers[2].width == 4
    assert np.array_equal(traj.first, arrays[0])
    assert np.array_equal(traj.last, arrays[-1])
    assert traj.num_classes == 3


def test_new_width_without_a_shortcut_starts_a_separate_segment(rng):
    widths = [4, 4, 7, 7, 7, 2]
    traj = Trajectory.from_arrays([rng.normal(size=(5, d)) for d in widths], [0, 1, 0, 1, 0])
    assert [s.names for s in traj.segments] == [
        ("layer0", "layer1"),
        ("layer2", "layer3", "layer4"),
    ]
    assert len(traj.blocks) == 3


def test_shortcut_maps_into_the_new_space(rng):
    a, b, c, image = (rng.normal(size=(5, d)) for d in (4, 7, 7, 3))
    layers = (
        Layer("input", image, None),
        Layer("stem", a, 0),
        Layer("one", b, 1, entry=c),
    )
    traj = Trajectory(layers, np.array([0, 1, 0, 1, 0]))
    (block,) = traj.blocks
    assert (block.via, block.source, block.target) == ("shortcut", "stem", "one")
    assert block.x is c
    assert [s.names for s in traj.segments] == [("one.shortcut", "one")]


def test_one_space_for_the_whole_network(rng):
    traj = Trajectory.from_arrays([rng.normal(size=(9, d)) for d in (3, 5, 4)], np.arange(9) % 3)
    padded = traj.embedded("pad")
    assert len(padded.segments) == 1
    assert np.array_equal(padded.layers[0].features[:, 3:], np.zeros((9, 2)))
    full = traj.embedded("pca:5")
    assert np.allclose(
        np.linalg.norm(full.last - full.first), np.linalg.norm(padded.last - padded.first)
    )
    assert traj.embedded("pca:2").last.shape == (9, 2)
    for bad in ("pca:6", "pca:0", "pca", "pca:²", "stretch"):
        with pytest.raises(ArgumentError, match="choose pad"):
            traj.embedded(bad)


@pytest.mark.parametrize("formed", [8, 7], ids=["covariance", "subspace"])
def test_principal_components_are_those_of_all_layers_together(rng, monkeypatch, formed):
    monkeypatch.setattr("wgeo.trajectory.views._MAX_COVARIANCE_WIDTH", formed)
    arrays = [rng.normal(size=(50, d)) * np.arange(1, d + 1) + 7 for d in (6, 8)]
    found = Trajectory.from_arrays(arrays, np.arange(50) % 2).embedded("pca:3")
    padded = np.concatenate([np.pad(arrays[0], ((0, 0), (0, 2))), arrays[1]])
    peer = PCA(3, svd_solver="full").fit_transform(padded)
    ours = np.concatenate([layer.features for layer in found.layers])
    np.testing.assert_allclose(abs(ours), abs(peer), rtol=1e-9, atol=1e-9)


def test_any_array_type_is_accepted(rng):
    x = rng.normal(size=(4, 3))
    kinds = [x, torch.tensor(x), x.astype(np.float16), x[:, ::-1], (x * 10).astype(int)]
    traj = Trajectory.from_arrays(kinds, torch.tensor([0, 1, 0, 1]), names=list("abcde"))
    assert [layer.features.dtype.kind for layer in traj.layers] == ["f"] * 5
    assert np.array_equal(traj.layers[3].features, x[:, ::-1])


@pytest.mark.parametrize(
    ("arrays", "labels", "message"),
    [
        ([], [0], "at least one layer"),
        ([np.ones((2, 2)), np.ones((3, 2))], [0, 1], "3 samples"),
        ([np.array([[1.0], [np.nan]])], [0, 1], "layer 'layer0' holds NaN.*sample 1"),
        ([np.ones((2, 2))], [0, 1, 1], "3 labels for 2"),
        ([np.ones((2, 2))], [0, -1], "negative"),
        ([np.ones((2, 2))], [0, 0.5], "whole numbers"),
        ([np.ones((2, 2))], [0, np.inf], "whole numbers"),
        ([np.ones((2, 2))], [[0], [1, 2]], "labels cannot be read"),
        ([[[1.0], [1.0, 2.0]]], [0, 1], "layer 'layer0' cannot be read"),
        ([np.ones((2, 2, 2))], [0, 1], "samples, features"),
        ([np.array([["a"], ["b"]])], [0, 1], "not numeric"),
        ([np.ones((2, 0))], [0, 1], "empty"),
    ],
)
def test_invalid_input_is_a_clear_error(arrays, labels, message):
    with pytest.raises((FeatureError, ArgumentError), match=message):
        Trajectory.from_arrays(arrays, labels)


def test_error_names_the_rows_that_were_checked(monkeypatch):
    monkeypatch.setattr("wgeo.arrays.rows._CHUNK_BYTES", 4 * 8)  # chunks of four rows
    x = np.ones((10, 1))
    x[[5, 9]] = np.nan
    with pytest.raises(FeatureError, match=r"in 1 of the samples 4 to 7, first in sample 5\."):
        check_features(x, "x")

"""The law of data separation on paths whose rate, correlation and curvature are known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import wgeo
from wgeo.errors import ArgumentError
from wgeo.neural_collapse import SegmentLaw, collapse_of
from wgeo.neural_collapse.depth import law_of_layers

LABELS = np.arange(60) % 3
MEANS = 2.0 * np.eye(3, 5)[LABELS]


def residuals(seed: int = 0) -> np.ndarray:
    """Deviations from the class means, whose class means are exactly zero."""
    noise = np.random.default_rng(seed).normal(size=(60, 5))
    return noise - np.stack([noise[k == LABELS].mean(0) for k in range(3)])[LABELS]


def law_of(means: list[float], within: list[float], **options) -> SegmentLaw:
    """Scale class means and residuals by these factors, layer by layer."""
    w = residuals()
    layers = [a * MEANS + b * w for a, b in zip(means, within, strict=True)]
    traj = wgeo.Trajectory.from_arrays(layers, LABELS)
    (segment,) = wgeo.separation_law(traj, **options).segments
    return segment


@pytest.mark.parametrize(("factor", "depth"), [(0.8, 10), (0.3, 4), (0.95, 3), (1.6, 7)])
def test_geometric_residuals_follow_the_law_exactly(factor, depth):
    law = law_of([1.0] * depth, [factor**k for k in range(depth)])
    assert law.rate == pytest.approx(factor**2, rel=1e-9)
    assert law.correlation == pytest.approx(np.sign(factor - 1), rel=1e-9)
    assert law.curvature == pytest.approx(0, abs=1e-7)
    assert law.compression_rate == pytest.approx(law.rate, rel=1e-9)
    expected = None if factor > 1 else np.log(0.5) / np.log(law.rate)
    assert law.half_layers == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("end", "rate", "correlation", "curvature"),
    [
        (0.5, 0.8424, -0.9952, -0.340),
        (0.1, 0.5935, -0.9508, -0.966),
        (0.01, 0.4106, -0.8474, -1.397),
    ],
)
def test_a_contracting_geodesic_is_concave_and_an_expanding_one_convex(
    end, rate, correlation, curvature
):
    """Contraction to `end` at constant speed, and expansion of the means by 1 / `end`."""
    t = np.linspace(0, 1, 9)
    contraction = law_of([1.0] * 9, list(1 - (1 - end) * t))
    expansion = law_of(list(1 + (1 / end - 1) * t), [1.0] * 9)
    assert contraction.separation[-1] / contraction.separation[0] == pytest.approx(end**2)
    for law, sign in ((contraction, 1), (expansion, -1)):
        assert law.rate == pytest.approx(rate, abs=1e-4)
        assert law.correlation == pytest.approx(correlation, abs=1e-4)
        assert law.curvature == pytest.approx(sign * curvature, abs=1e-3)
    inverse = np.array(expansion.separation) ** -0.5
    np.testing.assert_allclose(np.diff(inverse, 2), 0, atol=1e-10)


def test_values_of_a_simplex_frame_with_known_noise():
    """Means c (e_k - 1/K) and residuals +-s e_j: D, C and both discriminations by hand."""
    K, c, s = 4, 2.0, 0.3
    means = c * (np.eye(K) - 1 / K)
    noise = np.concatenate([s * np.eye(K), -s * np.eye(K)])
    labels = np.repeat(np.arange(K), len(noise))
    points = means[labels] + np.tile(noise, (K, 1))
    layer = collapse_of(points, labels)
    assert layer.nc1 * layer.classes == pytest.approx((K - 1) * K * s**2 / (K * c**2))  # .0675
    assert layer.nc1_quotient == pytest.approx(s**2 * K / (c**2 * (K - 1)))  # .03
    assert layer.discrimination == pytest.approx(1 + 1 / (K - 1))
    far = 100 * np.ones(K) / np.sqrt(K)  # an offset hides the directions: the means do not differ
    assert collapse_of(points + far, labels).discrimination < 1e-3
    assert collapse_of(points + far, labels).nc1 == pytest.approx(layer.nc1)
    orthogonal = np.eye(K)[labels]
    assert collapse_of(orthogonal, labels).discrimination == pytest.approx(1)


def test_discrimination_that_grows_linearly_has_correlation_one():
    angles = np.arccos(1 - np.array([0.1, 0.3, 0.5, 0.7]))
    noise = residuals()[:40, :2] * 0.01
    labels = np.arange(40) % 2
    noise -= np.stack([noise[labels == k].mean(0) for k in range(2)])[labels]
    layers = [np.array([[1, 0], [np.cos(a), np.sin(a)]])[labels] + noise for a in angles]
    (law,) = wgeo.separation_law(wgeo.Trajectory.from_arrays(layers, labels)).segments
    np.testing.assert_allclose(law.discrimination, [0.1, 0.3, 0.5, 0.7])
    assert law.discrimination_slope == pytest.approx(0.2)
    assert law.discrimination_correlation == pytest.approx(1)


def test_stages_are_fitted_separately_and_together():
    w = residuals()
    layers = [MEANS + 0.8**k * w for k in range(4)]
    layers += [(MEANS + 0.5**k * w)[:, :4] for k in range(4)]
    law = wgeo.separation_law(wgeo.Trajectory.from_arrays(layers, LABELS))
    assert [segment.stage for segment in law.segments] == [0, 1, None]
    assert [len(segment.layers) for segment in law.segments] == [4, 4, 8]
    assert law.segments[0].rate == pytest.approx(0.64)
    assert law.segments[1].rate == pytest.approx(0.25)
    assert len(law.to_pandas()) == 16
    assert len(repr(law).splitlines()) <= 10
    assert "<table>" in law._repr_html_()
    json.dumps(law.to_dict())


def test_undefined_values_are_none_not_numbers():
    constant = law_of([1.0] * 4, [0.7] * 4)
    assert constant.rate == pytest.approx(1)
    assert constant.correlation is None
    assert constant.curvature is None
    collapsed = law_of([1.0] * 4, [1.0, 0.5, 0.1, 0.0])
    assert collapsed.rate is None
    short = wgeo.Trajectory.from_arrays([MEANS + residuals(), MEANS], LABELS)
    assert wgeo.separation_law(short).segments == ()
    assert "fewer than 3 layers" in repr(wgeo.separation_law(short))


@pytest.mark.parametrize(
    "values",
    [
        (1.0, 1 - 5e-15, 1 - 1e-14),
        (1e99, 1e99 * (1 - 2e-11), 1e99 * (1 - 4e-11)),
        (10.0, 1.0, 1000.0, 1.0),
    ],
)
def test_a_fall_that_is_rounding_has_no_half_layers(values):
    """D is constant up to rounding, or its least-squares slope is zero up to rounding."""
    layer = replace(collapse_of(MEANS + residuals(), LABELS), stage=0, classes=1)
    (law,) = law_of_layers([replace(layer, nc1=value) for value in values]).segments
    assert law.rate == pytest.approx(1, abs=1e-10)
    assert law.half_layers is None


def test_chosen_layers_intervals_and_a_collapse_agree():
    w = [residuals(seed) for seed in range(5)]
    layers = [MEANS + 0.8**k * (w[0] + 0.1 * w[k]) for k in range(5)]
    traj = wgeo.Trajectory.from_arrays(layers, LABELS)
    measured = wgeo.collapse(traj, bootstrap=40)
    law = wgeo.separation_law(measured)
    assert law is measured.separation_law
    again = wgeo.separation_law(traj, bootstrap=40).segments[0]
    assert again.rate == pytest.approx(law.segments[0].rate)
    assert again.intervals["curvature"] == pytest.approx(law.segments[0].intervals["curvature"])
    low, high = law.segments[0].intervals["rate"]
    assert low < law.segments[0].rate < high
    names = ["layer1", "layer2", "layer4"]
    for source in (measured, traj):
        (chosen,) = wgeo.separation_law(source, layers=names).segments
        assert chosen.layers == tuple(names)
        assert chosen.separation == pytest.approx(
            [law.segments[0].separation[k] for k in (1, 2, 4)]
        )
        with pytest.raises(ArgumentError, match="layers is empty"):
            wgeo.separation_law(source, layers=[])
    with pytest.raises(ArgumentError, match="no layer 'layer9'"):
        wgeo.separation_law(traj, layers=["layer9"])
    with pytest.raises(ArgumentError, match="cannot be resampled"):
        wgeo.separation_law(measured, bootstrap=10)
    with pytest.raises(ArgumentError, match="takes a Collapse"):
        wgeo.separation_law(layers)

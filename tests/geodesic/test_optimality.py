"""The correlation score, null maps and centered measures, against known answers."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from cases import ADVERSARIAL, cloud, rotated
from hypothesis import given, settings
from hypothesis import strategies as st
from references import exact_w2, rational
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

import wgeo
from wgeo.errors import ArgumentError, RecordError
from wgeo.geodesic import pairs as pairs_module
from wgeo.geodesic.pairs import Moments, evenly_spaced, solved_pair
from wgeo.geodesic.reliability import antisymmetric, has_power, null_scores
from wgeo.geodesic.resampling import SegmentSample, resample
from wgeo.storage.record import Block, Record, Segment
from wgeo.storage.schema import read
from wgeo.transport import Exact, Gaussian, Sinkhorn, Sliced, wasserstein


def trajectory(*arrays):
    return wgeo.Trajectory.from_arrays(arrays, np.zeros(len(arrays[0]), int))


def pair_score(x, y, solver):
    return solved_pair(x, y, solver).corr_score


def measured(*arrays, **options):
    """The one segment of a trajectory, without intervals and nulls."""
    options = {"bootstrap": 0, "nulls": 0, **options}
    return wgeo.straightness(trajectory(*arrays), **options).segments[0]


# ---- the correlation score -------------------------------------------------------------------


def test_a_common_shift_is_no_evidence(rng):
    """A quarter turn plus a shift of 30: the OT score sees the shift, centred measures do not."""
    x = rng.normal(size=(1000, 2))
    found = measured(x, rotated(x, 90) + np.array([30, 0]), nulls=1)
    assert found.ot_score == pytest.approx(0.996, abs=0.001)
    assert found.ot_score_centred == pytest.approx(0.009, abs=0.006)
    assert found.shift_share > 0.99
    assert found.corr_score[0] == pytest.approx(0, abs=1e-9)  # <x, x turned> = 0 at every sample
    assert found.corr_score[1] <= found.corr_score[0] <= found.corr_score[2]
    assert not found.power


@pytest.mark.parametrize("degrees", [20, 45, 60])
def test_a_planar_rotation_scores_the_cosine(degrees, rng):
    """In the limit: an isotropic normal and its rotation are one distribution."""
    x = rng.normal(size=(2000, 2))
    value, low, high = pair_score(x, rotated(x, degrees), Exact())
    assert value == pytest.approx(np.cos(np.radians(degrees)), abs=0.01)
    assert low <= value <= high <= low + 1e-5


def test_gradients_of_convex_functions_score_one(rng):
    x = rng.normal(size=(300, 4))
    root = rng.normal(size=(4, 4))
    weights = rng.normal(size=(9, 4))
    for y in (
        x @ (root @ root.T) + 5,
        x + np.maximum(x @ weights.T, 0) @ weights,  # a residual block of tied weights
        x**3,
        1e-3 * x,
    ):
        assert pair_score(x, y, Exact())[1:] == pytest.approx((1, 1), abs=1e-6)


def slow_score(x, y):
    u, v = x - x.mean(0), y - y.mean(0)
    cost = cdist(u, v, "sqeuclidean")
    best = -(cost[linear_sum_assignment(cost)].mean() - (u**2 + v**2).sum(1).mean()) / 2
    return (u * v).sum(1).mean() / best


@given(st.integers(3, 20), st.integers(1, 4), st.integers(0, 10**6), st.floats(1e-2, 1e2))
def test_score_is_unchanged_by_translating_and_scaling_either_cloud(n, d, seed, scale):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, n, d))
    value, low, high = pair_score(x, y, Exact())
    assert low <= value <= high <= 1
    assert value == pytest.approx(slow_score(x, y), abs=1e-8)
    for other in (pair_score(scale * x + 7, y, Exact()), pair_score(x, scale * y - 3, Exact())):
        assert other[0] == pytest.approx(value, abs=1e-6)


def test_scaling_drives_the_ot_score_to_one_and_not_the_correlation_score(rng):
    x, y = rng.normal(size=(2, 200, 3))
    for scale, least in ((1, 0.0), (10, 0.7), (141, 0.98)):
        found = measured(x, scale * y)
        sd_x, sd_y = found.spread
        bound = (sd_y - sd_x) ** 2 / found.centred["paired"] ** 2
        assert found.ot_score_centred >= bound - 1e-12
        assert bound >= least
        assert found.corr_score[0] == pytest.approx(slow_score(x, y), abs=1e-6)
        assert found.spread_ratio == pytest.approx(sd_y / sd_x)


def exact_score(x, y):
    """The correlation score of a few points in rational arithmetic."""
    n = len(x)
    u, v = (
        [
            [a - sum(column) / n for a, column in zip(row, zip(*p, strict=True), strict=True)]
            for row in p
        ]
        for p in (rational(x), rational(y))
    )
    square = [sum(a * a for row in p for a in row) / n for p in (u, v)]
    own = sum(a * b for p, q in zip(u, v, strict=True) for a, b in zip(p, q, strict=True)) / n
    shift = sum(
        (sum(b) / n - sum(a) / n) ** 2
        for a, b in zip(zip(*rational(x), strict=True), zip(*rational(y), strict=True), strict=True)
    )
    return own / ((sum(square) - (exact_w2(x, y) - shift)) / 2)


@pytest.mark.parametrize("case", ADVERSARIAL)
@pytest.mark.parametrize(
    "solver", [Exact(), Sliced(projections=8), Gaussian()], ids=lambda s: s.name
)
def test_interval_contains_the_exact_score(solver, case):
    for seed in range(3):
        x, y = (cloud(2 * seed + k, **ADVERSARIAL[case]) for k in (0, 1))
        found = pair_score(x, y, solver)
        if found is None:  # nothing bounds a negative score from below, or a cloud is a point
            continue
        value, low, high = found
        assert Fraction(low) <= exact_score(x, y) <= Fraction(high)
        assert low <= value <= high


@pytest.mark.parametrize("shift", [0, 30, 1e5, 1e8])
def test_large_shift_costs_no_digits(shift, rng):
    """If W2^2 minus the squared shift has no correct digits, the centered clouds are solved."""
    x = np.round(rng.normal(size=(60, 3)), 6)
    y = np.round(rng.normal(size=(60, 3)), 6)
    value, low, high = pair_score(x, y + shift, Exact())
    assert value == pytest.approx(slow_score(x, y), abs=1e-6)
    assert high - low < 1e-5


def test_points_have_no_score(rng):
    x, one = rng.normal(size=(20, 3)), np.ones((20, 3))
    for arrays in ((x, one), (one, x), (one, 2 * one)):
        found = measured(*arrays, nulls=1)
        assert found.corr_score is None
        assert found.null == ()
        assert found.power is None


# ---- null maps and power ---------------------------------------------------------------------


def test_turning_matrices_are_orthogonal_and_antisymmetric(rng):
    a = antisymmetric(8, rng)
    np.testing.assert_allclose(a, -a.T, atol=1e-12)
    np.testing.assert_allclose(a @ a.T, np.eye(8), atol=1e-12)


def test_sparse_sample_has_no_power(rng):
    """A rotation by 45 degrees in 16 planes is no gradient, and yet optimal on these samples."""
    x = rng.normal(size=(2000, 32))
    y = x + x @ antisymmetric(32, rng)
    score = pair_score(x, y, Exact())
    null = null_scores(x, y, own=score)
    assert score[0] > 0.999
    assert {each.kind for each in null} == {"dealt", "turned"}
    assert has_power(null) is False


def test_dense_sample_has_power(rng):
    x = rng.normal(size=(500, 2))
    found = measured(x, x @ np.diag([3.0, 0.5]), nulls=2)
    assert found.power
    assert found.corr_score[1] > 1 - 1e-6
    for each in found.null:
        assert len(each.draws) == 2
        assert each.score[0] == max(each.draws)
        assert each.own == found.corr_score
        assert each.samples == 500


def test_null_scores_agree_with_a_slow_reference(rng):
    """Maps with the same displacements; dealt ones do not depend on the sample's position."""
    x = rng.normal(size=(150, 3))
    y = np.tanh(x) @ rng.normal(size=(3, 3)) + 4
    null = null_scores(x, y, draws=3, seed=(5,))
    again = np.random.default_rng((5,))
    step = (y - x) - (y - x).mean(0)
    expected = [slow_score(x, x + step[again.permutation(150)]) for _ in range(3)]
    assert null[0].draws == pytest.approx(expected, abs=1e-7)
    padded = [np.pad(part, ((0, 0), (0, 1))) for part in (x, step)]
    expected = [
        slow_score(padded[0], padded[0] + padded[1] @ antisymmetric(4, again).T) for _ in range(3)
    ]
    assert null[1].draws == pytest.approx(expected, abs=1e-7)


def test_nulls_use_a_subset_of_many_samples_without_copies(rng, monkeypatch):
    x = rng.normal(size=(60, 2))
    y = rotated(x, 30)
    groups = np.arange(60) // 3
    assert {each.samples for each in null_scores(x, y, groups=groups)} == {20}
    monkeypatch.setattr("wgeo.geodesic.reliability.MAX_SAMPLES", 25)
    own = pair_score(x, y, Exact())
    part = null_scores(x, y, own=own)
    assert {each.samples for each in part} == {25}
    assert part[0].own != own  # that of the same part
    assert null_scores(x, y, draws=0) == ()


@pytest.mark.parametrize("noise", [0.5, 1e-9])
def test_noise_has_no_power(noise):
    """Random steps, large or below rounding, are not maps; nothing may be claimed about them."""
    rng = np.random.default_rng(3)
    layers = np.cumsum([rng.normal(size=(60, 64)), *(noise * rng.normal(size=(4, 60, 64)))], axis=0)
    result = wgeo.straightness(trajectory(*layers), bootstrap=0)
    assert not any(row.power for row in (*result.blocks, *result.segments))
    assert all((block.relative_displacement < 1e-6) == (noise < 1e-6) for block in result.blocks)


# ---- centred twins ---------------------------------------------------------------------------


def test_centred_measures_are_those_of_the_centred_layers(rng):
    steps = rng.normal(size=(5, 80, 3)) + 4 * rng.normal(size=(5, 1, 3))
    layers = np.cumsum(steps, axis=0)
    centred = [layer - layer.mean(0) for layer in layers]
    found = wgeo.straightness(trajectory(*layers), bootstrap=100, nulls=0)
    alone = wgeo.straightness(trajectory(*centred), bootstrap=100, nulls=0)
    (ours,), (theirs,) = found.segments, alone.segments
    for name, value in ours.centred.items():
        if name in ("null_length_ratio", "length_ratio_at_most"):
            assert value == pytest.approx(theirs.centred[name], abs=1e-6), name
        elif name == "intervals":
            for key, ends in value.items():
                other = theirs.intervals[key]  # of other optimal potentials: there are many
                assert ends == pytest.approx(other, abs=0.15 * np.ptp(other) + 1e-6), key
        else:
            assert value == pytest.approx(getattr(theirs, name), abs=1e-6), name
    assert ours.ot_score_centred == pytest.approx(theirs.ot_score, abs=1e-9)
    assert ours.corr_score == pytest.approx(theirs.corr_score, abs=1e-9)
    for block, other in zip(found.blocks, alone.blocks, strict=True):
        assert block.ot_score_centred == pytest.approx(other.ot_score, abs=1e-9)
        ends = other.intervals["corr_score"]
        assert block.intervals["corr_score"] == pytest.approx(ends, abs=0.15 * np.ptp(ends))
        assert block.shift_share == pytest.approx(1 - (other.paired / block.paired) ** 2, abs=1e-9)


def test_potentials_of_centred_clouds_prove_the_centred_cost(rng):
    x, y = rng.normal(size=(2, 40, 3)) + rng.normal(size=(2, 1, 3)) * 5
    pair = Moments.of((x, y), 0.0).pair(0, 1, wasserstein(x, y), potentials=True)
    f, g = pair.transport.potentials
    cost = cdist(x - x.mean(0), y - y.mean(0), "sqeuclidean")
    assert (f[:, None] + g <= cost + 1e-9).all()
    assert f.mean() + g.mean() == pytest.approx(pair.transport.cost, abs=1e-9)
    assert pair.transport.cost == pytest.approx(cost[linear_sum_assignment(cost)].mean(), abs=1e-9)
    assert pair.squared_shift == pytest.approx(((y - x).mean(0) ** 2).sum())


def test_a_large_shift_leaves_the_centred_intervals_as_they_are(rng):
    """The solver's interval is then too wide for the centered cost, which is solved again."""
    x = rng.normal(size=(60, 3))
    y = 1.5 * x + 0.5 * rng.normal(size=(60, 3)) + [30, 0, 0]
    loose, exact = (
        wgeo.straightness(trajectory(x, y), solver=solver, nulls=0).segments[0]
        for solver in (Sinkhorn(tolerance=1e-3), Exact())
    )
    low, high = loose.centred["intervals"]["distance"]
    assert high > 1.05 * low
    for name in ("corr_score", "ot_score_centred"):
        assert loose.intervals[name] == pytest.approx(exact.intervals[name], abs=1e-6)
    assert (low, high) == pytest.approx(exact.centred["intervals"]["distance"], abs=1e-6)


def test_constant_shift_by_every_block_is_not_straightness(rng):
    """Six blocks that shift all samples and mix them a little: straight, but bent if centered."""
    layers = [rng.normal(size=(400, 16))]
    for _ in range(6):
        layers.append(layers[-1] + np.eye(16)[0] * 3 + 0.15 * rng.normal(size=(400, 16)))
    found = measured(*layers)
    assert found.length_ratio < 1.02
    assert found.centred["length_ratio"] > 1.4
    assert found.shift_share > 0.99


def test_intervals_of_the_score_cover_the_expectation_at_this_sample_size():
    truth, intervals = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(60, 2)) * [2, 1]
        y = rotated(x, 50) + 0.3 * rng.normal(size=(60, 2)) + 3
        truth.append(slow_score(x, y))
        if seed < 100:
            moments = Moments.of((x, y), 0.0)
            step = moments.pair(0, 1, wasserstein(x, y), potentials=True).transport
            sample = SegmentSample.centered_of(moments, [step], step)
            intervals.append(sample.resampled(200, seed).interval("corr_score"))
    low, high = np.array(intervals).T
    share = ((low <= np.mean(truth)) & (np.mean(truth) <= high)).mean()
    assert share >= 0.88
    assert 0.75 < np.mean(high - low) / (2 * 1.96 * np.std(truth)) < 1.4


# ---- moving blocks and coarse paths ----------------------------------------------------------


def orthogonal_steps(sizes, rng, n=40):
    """Layers whose consecutive W2 are `sizes`, along mutually orthogonal directions."""
    x = np.zeros((n, len(sizes) + 2))
    x[:, -2:] = rng.normal(size=(n, 2))
    layers = [x]
    for k, size in enumerate(sizes):
        layers.append(layers[-1] + size * np.eye(x.shape[1])[k])
    return layers


def test_orthogonal_steps_have_the_square_root_of_the_moving_blocks(rng):
    sizes = [1.0, 2.0, 0.5, 3.0]
    found = measured(*orthogonal_steps(sizes, rng))
    blocks = sum(sizes) ** 2 / sum(s**2 for s in sizes)
    assert found.moving_blocks == pytest.approx(blocks)
    assert found.length_ratio == pytest.approx(found.sqrt_moving_blocks) == np.sqrt(blocks)
    assert found.action_ratio == pytest.approx(4 * found.length_ratio**2 / blocks)
    still = measured(*[orthogonal_steps([], rng)[0]] * 3)
    assert still.moving_blocks is None
    assert still.sqrt_moving_blocks is None


@settings(max_examples=8)
@given(st.integers(2, 9), st.integers(0, 10**6))
def test_length_does_not_fall_with_the_number_of_runs(blocks, seed):
    layers = np.random.default_rng(seed).normal(size=(blocks + 1, 12, 2)).cumsum(0)
    found = measured(*layers)
    for raw, ratio in (
        (found.length_over_runs, found.length_ratio),
        (found.centred["length_over_runs"], found.centred["length_ratio"]),
    ):
        assert list(raw) == [k for k in (2, 4, 8) if k < blocks] + [blocks]
        assert all(a <= b + 1e-9 for a, b in pairwise(raw.values()))
        assert raw[blocks] == pytest.approx(ratio)
    runs = evenly_spaced(blocks, 2)
    steps = [wasserstein(layers[a], layers[b]).distance for a, b in pairwise(runs)]
    assert found.length_over_runs[2] == pytest.approx(max(sum(steps) / found.distance, 1))


@pytest.mark.parametrize("blocks", [4, 8])
def test_lengths_over_runs_of_a_quarter_circle(blocks, rng):
    """One random factor times a vector on a quarter circle: W2 is its size times the chord.

    The length over k runs is that of k chords, whatever the number of blocks and the shifts.
    """
    factor = rng.normal(size=20)
    factor = (factor - factor.mean())[:, None]
    angles = np.linspace(0, np.pi / 2, blocks + 1)
    circle = [factor * [np.cos(angle), np.sin(angle), 0] for angle in angles]
    runs = (k for k in (2, 4, 8) if k <= blocks)
    expected = {k: k * np.sqrt(2) * np.sin(np.pi / (4 * k)) for k in runs}
    assert measured(*circle).length_over_runs == pytest.approx(expected, abs=1e-9)
    shifted = [x + np.array([0, 0, 9.0 * k**2]) for k, x in enumerate(circle)]
    found = measured(*shifted)
    assert found.centred["length_over_runs"] == pytest.approx(expected, abs=1e-9)
    assert all(value < 1.001 for value in found.length_over_runs.values())  # all along one line


@given(st.integers(2, 100), st.integers(1, 8))
def test_finer_runs_contain_the_coarser(blocks, runs):
    assert set(evenly_spaced(blocks, runs)) <= set(evenly_spaced(blocks, 2 * runs))
    assert evenly_spaced(blocks, runs)[0] == 0
    assert evenly_spaced(blocks, runs)[-1] == blocks
    assert evenly_spaced(blocks, blocks) == list(range(blocks + 1))


# ---- every two layers ------------------------------------------------------------------------


def test_pairs_contain_every_two_layers(rng):
    layers = rng.normal(size=(5, 30, 2)).cumsum(0)
    found = measured(*layers, nulls=1)
    pairs = found.pairs
    assert pairs.layers == found.layers
    for i in range(5):
        for j in range(5):
            result = wasserstein(layers[i], layers[j])
            assert pairs.distance[i][j] == pytest.approx(result.distance, abs=1e-9)
            assert pairs.lower[i][j] <= pairs.distance[i][j] <= pairs.upper[i][j]
            expected = 1.0 if i == j else slow_score(layers[i], layers[j])
            assert pairs.corr_score[i][j] == pytest.approx(expected, abs=1e-7)
            asked = abs(i - j) == 1 or (i != j and 4 in (i, j))
            assert (pairs.null[i][j] is not None) == asked
    assert pairs.null[0][4] == max(each.score[2] for each in found.null)


def test_a_longer_segment_compares_layers_spread_evenly(rng):
    layers = rng.normal(size=(17, 10, 2)).cumsum(0)
    found = measured(*layers)
    assert found.pairs.layers == tuple(found.layers[::2])
    assert list(found.length_over_runs) == [2, 4, 8, 16]
    step = wasserstein(layers[2], layers[4]).distance
    assert found.pairs.distance[1][2] == pytest.approx(step)


def test_pairs_are_solved_if_affordable(rng, monkeypatch):
    layers = rng.normal(size=(5, 30, 2)).cumsum(0)
    assert measured(*layers, pairs=False).pairs is None
    assert list(measured(*layers, pairs=False).length_over_runs) == [4]
    monkeypatch.setattr(pairs_module, "_WORK", 1.0)
    assert measured(*layers).pairs is None
    assert measured(*layers, pairs=True).pairs is not None
    assert measured(*layers[:2]).pairs is None


# ---- copies, and the record ------------------------------------------------------------------


def test_copies_of_an_image_do_not_narrow_intervals(rng):
    layers = [rng.normal(size=(50, 3))]
    for _ in range(2):
        layers.append(layers[-1] + np.tanh(layers[-1] @ rng.normal(size=(3, 3))))
    copies = [np.repeat(layer, 4, axis=0) for layer in layers]
    groups = np.repeat(np.arange(50), 4)
    options = {"bootstrap": 400}
    once, naive = measured(*layers, **options), measured(*copies, **options)
    told = measured(*copies, groups=groups, **options)
    assert (told.samples, told.distinct, naive.distinct) == (200, 50, 200)

    def width(segment, name="line_shape_ratio"):
        return np.ptp(segment.intervals[name])

    assert width(told) == pytest.approx(width(once), rel=1e-6)
    assert width(naive) < 0.7 * width(once)
    assert told.centred["intervals"]["length_ratio"] == pytest.approx(
        once.centred["intervals"]["length_ratio"],
        rel=0.05,  # optimal potentials are not unique
    )
    with pytest.raises(ArgumentError, match="groups must be 200 whole numbers"):
        measured(*copies, groups=groups[1:])
    with pytest.raises(ArgumentError, match="nulls"):
        measured(*layers, nulls=-1)


def test_groups_of_unequal_size_are_left_out_and_drawn_together():
    columns = np.array([[1.0], [2.0], [4.0], [8.0]])
    groups = np.array([7, 7, 3, 7])
    found = resample(columns, lambda m: {"mean": m[:, 0]}, draws=50, seed=0, groups=groups)
    assert found.values["mean"] == 3.75
    np.testing.assert_allclose(found.left_out["mean"], [11 / 3, 4.0])
    assert set(np.round(found.draws["mean"], 9)) == {4.0, 3.75, round(11 / 3, 9)}


def test_record_contains_optimality_and_matches_the_schema(rng):
    layers = rng.normal(size=(4, 30, 2)).cumsum(0)
    found = wgeo.straightness(trajectory(*layers), bootstrap=20).to_dict()
    record = json.loads(json.dumps(found, allow_nan=False))
    typed = Record.of(record)
    assert not read(tuple[Block, ...], record["blocks"])[1]
    assert not read(tuple[Segment, ...], record["segments"])[1]
    assert list(typed.mismatches()) == []
    assert typed.segments[0].length_over_runs.keys() == {2, 3}
    record["segments"][0]["pairs"]["distance"] = [[0.0]]
    (fault,) = Record.of(record).mismatches()
    assert fault.location == "segments[0].pairs.distance"
    record["segments"][0]["corr_score"] = [1.0]
    with pytest.raises(RecordError, match=r"segments\[0\]\.corr_score \(expected a list"):
        Record.of(record)


def test_table_has_one_value_per_cell(rng):
    pytest.importorskip("pandas")
    found = wgeo.straightness(trajectory(*rng.normal(size=(3, 20, 2))), bootstrap=20)
    table = found.to_pandas()
    assert not table.map(lambda cell: isinstance(cell, list | dict)).to_numpy().any()
    assert list(table["corr_score"]) == [block.corr_score[0] for block in found.blocks]
    assert list(table["spread_target"]) == [block.spread[1] for block in found.blocks]


# ---- pretrained networks ---------------------------------------------------------------------


def pretrained(shared, name, samples):
    net = wgeo.load_checkpoint(
        shared / "checkpoints" / f"{name}.th", arch=f"cifar_{name.split('-')[0]}"
    )
    images = wgeo.load_images(shared / "data" / "cifar10_jpeg.zip", split="train", limit=samples)
    return wgeo.trace(net, images)


def test_first_stage_of_the_shared_resnet32_is_not_optimal(shared):
    """Most of the motion is a common shift: the OT score without centering is 0.991."""
    traj = pretrained(shared, "resnet32-d509ac18", 1500)
    traj = replace(traj, layers=tuple(at for at in traj.layers if (at.stage or 0) < 1))
    (stage,) = wgeo.straightness(traj, bootstrap=0, pairs=False, nulls=1).segments
    assert stage.ot_score_centred == pytest.approx(0.859, abs=0.01)
    assert not stage.power


def test_scores_and_lengths_of_the_shared_resnet20(shared):
    traj = pretrained(shared, "resnet20-12fca82f", 1000)
    found = wgeo.straightness(traj, bootstrap=0, pairs=False, nulls=0)
    scores = [stage.corr_score for stage in found.segments]
    scores.append(next(b for b in found.blocks if b.target == "layer3.2").corr_score)
    assert [value for value, _, _ in scores] == pytest.approx(
        [0.897, 0.994, 0.635, 0.998], abs=2e-3
    )
    assert all(low <= value <= high <= low + 1e-6 for value, low, high in scores)
    ratios = [stage.centred["length_ratio"] for stage in found.segments]
    assert ratios == pytest.approx([1.58, 1.70, 1.38], abs=0.02)

"""A network among networks with fresh weights: exact ranks, their simulated level, their power."""

from __future__ import annotations

import copy
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn

import wgeo
from wgeo.analysis.fresh import _check_fresh, _ratios, fresh_networks, rank_test
from wgeo.analysis.verdict import against_network, sentences
from wgeo.errors import ArgumentError
from wgeo.models import untrained
from wgeo.models.fresh import reestimate_statistics

READING = {"pool": "gap", "tap": "post", "batch_size": 256, "device": "cpu"}


@pytest.fixture(scope="module")
def images():
    return wgeo.load_images("digits", limit=120)


def network(seed: int, depth: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    options = {"width": 8, "depth": depth, "stride": 2}
    return wgeo.models.build(
        "isoresnet", num_classes=10, in_channels=1, image_size=8, **options
    ).eval()


def pixels(images) -> torch.Tensor:
    return wgeo.features.network.normalization_for(network(0), images)(images.x)


# --- ranks -----------------------------------------------------------------------------------


def test_fresh_weights_leave_all_generators_alone(monkeypatch):
    def refuse(*_):
        raise AssertionError("seeded a device's generator, which is not restored")

    net, before = network(3), torch.random.get_rng_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    first, second = (untrained(net, seed=1)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_ranks_of_known_ratios():
    fresh = np.exp(np.column_stack([np.linspace(0.5, 0.7, 20), np.linspace(1.0, 1.2, 20)]))
    straight, common = rank_test(np.exp(np.array([0.1, 1.11])), fresh)
    assert (straight["as_straight"], straight["as_bent"]) == (0, 20)
    assert straight["rank_p"] == straight["adjusted_p"] == pytest.approx(1 / 21)
    assert straight["direction"] == "straighter"
    assert straight["median"] == pytest.approx(np.median(fresh[:, 0]))
    assert (straight["low"], straight["high"]) == (fresh[0, 0], fresh[-1, 0])
    assert common["direction"] == "neither"
    assert common["rank_p"] > 0.5
    (bent,) = rank_test(np.array([9.0]), fresh[:, :1])
    assert bent["direction"] == "less straight"
    assert (bent["as_straight"], bent["as_bent"]) == (20, 0)


def test_equal_networks_and_undefined_ratios_give_no_evidence():
    (same,) = rank_test(np.array([1.3]), np.full((20, 1), 1.3 + 1e-14))
    assert (same["rank_p"], same["direction"]) == (1.0, "neither")
    fresh = np.linspace(1.4, 1.5, 20)[:, None]
    fresh[7] = np.nan
    (row,) = rank_test(np.array([1.1]), fresh)
    assert row["rank_p"] == pytest.approx(2 / 21)  # the undefined one may be as far away
    assert (row["as_straight"], row["as_bent"]) == (1, 20)


@pytest.mark.parametrize("segments", [1, 3])
def test_false_positive_rate_of_the_rank_test_is_at_most_five_percent(segments):
    """The family-wise level, of skewed and correlated ratios; exact is 1/21 = 0.048."""
    rng = np.random.default_rng(segments)
    draws, wrong = 2000, 0
    for _ in range(draws):
        normal = rng.normal(size=(21, segments)) + rng.normal(size=(21, 1))
        ratios = 1 + np.exp(normal)
        rows = rank_test(ratios[0], ratios[1:])
        wrong += any(row["direction"] != "neither" for row in rows)
    assert wrong / draws == pytest.approx(1 / 21, abs=0.015)  # three standard errors


# --- networks --------------------------------------------------------------------------------


def test_fresh_networks_do_not_differ_from_fresh_networks(images):
    """Each of 24 networks in turn is the one tested: 5 % of them is one network."""
    traj = wgeo.trace(network(0), images)
    found = fresh_networks(traj, network(0), images, 24, READING, seed=3)
    ratios = np.array([[s["centred"] for s in row["segments"]] for row in found["networks"]])
    wrong = 0
    for k in range(len(ratios)):
        rows = rank_test(ratios[k], np.delete(ratios, k, axis=0))
        wrong += any(row["direction"] != "neither" for row in rows)
    assert wrong <= 0.05 * len(ratios)
    assert len({row["seed"] for row in found["networks"]}) == 24


def test_the_record_of_fresh_networks(images):
    net = network(1)
    record = wgeo.analyze(
        net, images, bootstrap=0, brenier=0, alignment=0, mufm=False, reference_networks=3, seed=5
    ).record
    found = record["reference"]
    assert (found["kind"], found["images"], len(found["networks"])) == ("init", 120, 3)
    (segment,) = found["segments"]
    assert segment["value"] == pytest.approx(
        _ratios(wgeo.trace(net, images).segments[0].arrays).centred
    )
    first = found["networks"][0]
    fresh, _ = untrained(net, first["seed"])
    reestimate_statistics(fresh, pixels(images).split(40))  # at most 50 at once, all parts equal
    expected = _ratios(wgeo.trace(fresh, images).segments[0].arrays)
    assert first["segments"] == [pytest.approx(vars(expected))]
    with pytest.raises(ArgumentError, match="reference_networks"):
        wgeo.analyze(net, images, reference_networks=0)


def test_centring_removes_a_common_shift():
    rng = np.random.default_rng(0)
    path = list(np.cumsum(rng.normal(size=(4, 30, 5)), axis=0))
    shifted = [layer + 100 * k for k, layer in enumerate(path)]
    assert _ratios(shifted).centred == pytest.approx(_ratios(path).centred)
    assert _ratios(shifted).raw < 1.01 < _ratios(path).raw


def test_rounding_of_float32_features_is_no_path():
    """The end differs from the start by rounding, so the ratio is undefined, centered or not."""
    rng = np.random.default_rng(0)
    x = rng.normal(10, 1, (40, 5)).astype(np.float32)
    away = x + rng.normal(size=x.shape).astype(np.float32)
    back = np.where(rng.random(x.shape) < 0.5, x, np.nextafter(x, np.float32(np.inf)))
    ratios = _ratios([x, away, back])
    assert np.isnan([ratios.centred, ratios.raw]).all()


def test_parameters_that_keep_their_values_are_named():
    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

    with pytest.raises(ArgumentError, match=r"100.0 % .* \(weight\), so the network"):
        _check_fresh(*untrained(Kept(), 0))
    nearly = nn.Linear(19, 100)  # 1,900 weights and 100 biases
    nearly.kept = nn.Parameter(torch.ones(2_000_000))
    with pytest.raises(ArgumentError, match=r"^99.9 % of the parameters"):
        _check_fresh(nearly, ["kept"])


# --- batch statistics ------------------------------------------------------------------------


def test_batch_norm_statistics_match_the_images(images):
    net, x = network(2), pixels(images)
    reestimate_statistics(net, [x])
    norm = next(part for part in net.modules() if isinstance(part, nn.BatchNorm2d))
    seen = []
    norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        net(x)
    torch.testing.assert_close(norm.running_mean, seen[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, seen[0].var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert norm.momentum == 0.1
    assert not any(part.training for part in net.modules())


def test_average_over_equal_batches_is_that_of_all_images():
    net, x = nn.BatchNorm1d(3).eval(), torch.randn(60, 3)
    reestimate_statistics(net, x.split(20))
    torch.testing.assert_close(net.running_mean, x.mean(0))
    torch.testing.assert_close(
        net.running_var, torch.stack([p.var(0) for p in x.split(20)]).mean(0)
    )


def test_dropout_is_off_and_networks_without_batch_norm_are_unchanged():
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3)).train()
    x = torch.randn(40, 3)
    reestimate_statistics(net, [x])
    torch.testing.assert_close(net[1].running_mean, x.mean(0))
    assert net.training
    assert net[0].training
    other = nn.Sequential(nn.LayerNorm(3), nn.GroupNorm(1, 3))
    before = copy.deepcopy(other.state_dict())
    reestimate_statistics(other, iter(()))
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


# --- trained networks ------------------------------------------------------------------------


def trained(folder, seed: int, images, **recipe):
    options = {"stride": 2, "width": 8, "depth": 4}
    settings = {"epochs": 10, "batch_size": 32, "lr": 0.05, "weight_decay": 5e-3, **recipe}
    out = folder / f"seed-{seed}"
    run = wgeo.train("isoresnet", images, out, options=options, seed=seed, **settings)
    return wgeo.load_checkpoint(run.checkpoints[-1])


@pytest.fixture(scope="module")
def seeds(tmp_path_factory, images):
    """Eight seeds of one recipe: their networks' features of the same images."""
    folder = tmp_path_factory.mktemp("seeds")
    return [wgeo.trace(trained(folder, seed, images), images) for seed in range(8)]


def test_trained_digits_are_straighter_than_20_fresh_ones(tmp_path):
    """As `wgeo train` makes a network, and by the sentence of the verdict."""
    images = wgeo.load_images("digits", limit=500)
    net = trained(tmp_path, 0, images, epochs=5)
    traj = wgeo.trace(net, images)
    assert traj.accuracy > 0.9
    found = fresh_networks(traj, net, images, 20, READING, seed=0)
    (segment,) = found["segments"]
    assert segment["as_straight"] == 0
    (said,) = sentences({"reference": found})
    assert "the network is straighter than 20 randomly initialized networks" in said.words
    assert said.strength == "shown"


def test_two_seeds_of_one_recipe_differ_over_images_and_no_sentence_makes_more_of_it(seeds):
    """The test over images distinguishes most pairs, so it is about two networks only."""
    pairs = [wgeo.straighter_than(a, b, centred=True)[0] for a, b in combinations(seeds, 2)]
    differing = [test for test in pairs if test.direction != "neither"]
    assert len(differing) > len(pairs) / 2  # which the sentence states
    assert {test.over for test in pairs} == {"images"}
    for test in pairs:
        words = against_network(test.to_dict()).words
        assert "straighter" not in words
        assert "less straight" not in words
        assert ("two runs of one recipe with different seeds usually differ" in words) == (
            test in differing
        )


def test_over_networks_two_halves_of_one_recipe_are_not_told_apart(seeds):
    """All 35 ways to divide eight seeds: at most 5 %, one of them, at a level of 2/70."""
    told = 0
    for rest in combinations(range(1, 8), 3):
        first = [seeds[i] for i in (0, *rest)]
        second = [seed for i, seed in enumerate(seeds) if i not in (0, *rest)]
        (test,) = wgeo.straighter_than(first, second, centred=True)
        assert (test.over, test.samples, test.paired) == ("networks", 4, False)
        told += test.direction != "neither"
    assert told <= 0.05 * 35


def test_over_networks_fresh_ones_are_not_told_apart_and_trained_ones_are(seeds, images):
    """20 pairs of groups of four: more than 4 false ones have a probability of 0.3 % at 5 %."""
    rng = np.random.default_rng(0)
    fresh = []
    for seed in range(8):
        net = network(100 + seed, depth=4)
        reestimate_statistics(net, pixels(images).split(40))
        fresh.append(wgeo.trace(net, images))
    wrong = 0
    for _ in range(20):
        chosen = [fresh[i] for i in rng.permutation(8)]
        (test,) = wgeo.straighter_than(chosen[:4], chosen[4:], centred=True)
        wrong += test.direction != "neither"
    assert binomtest(wrong, 20, 0.05, alternative="greater").pvalue > 0.003
    (test,) = wgeo.straighter_than(seeds, fresh, centred=True)
    assert test.direction == "straighter"
    assert test.value == pytest.approx(
        np.mean([_ratios(s.segments[0].arrays).centred for s in seeds])
    )
    (paired,) = wgeo.straighter_than(seeds, fresh, centred=True, paired=True)
    assert (paired.direction, paired.paired) == ("straighter", True)


def test_sides_that_do_not_match_are_refused(seeds):
    with pytest.raises(ArgumentError, match="one on each side"):
        wgeo.straighter_than(seeds[0], seeds[1:])
    with pytest.raises(ArgumentError, match="give one Trajectory, or a sequence"):
        wgeo.straighter_than(seeds[:1], seeds[1:])
    with pytest.raises(ArgumentError, match="paired networks need equal numbers"):
        wgeo.straighter_than(seeds[:3], seeds[3:], paired=True)

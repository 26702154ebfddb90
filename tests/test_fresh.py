"""A network among networks with fresh weights: exact ranks, their simulated level, their power."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import wgeo
from wgeo.analysis.fresh import _ratios, fresh_networks, rank_test
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
    """Each of 24 takes its turn as the one that is tested: at most one in 20 may be told apart."""
    traj = wgeo.trace(network(0), images)
    found = fresh_networks(traj, network(0), images, 24, READING, seed=3)
    ratios = np.array([[s["centred"] for s in row["segments"]] for row in found["networks"]])
    wrong = 0
    for k in range(len(ratios)):
        rows = rank_test(ratios[k], np.delete(ratios, k, axis=0))
        wrong += any(row["direction"] != "neither" for row in rows)
    assert wrong <= 2
    assert len({row["seed"] for row in found["networks"]}) == 24


def test_the_record_of_fresh_networks(images):
    net = network(1)
    record = wgeo.analyze(
        net, images, bootstrap=0, brenier=0, mufm=False, reference_networks=3, seed=5
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


def test_trained_digits_are_straighter_than_fresh_ones(images):
    """Power: weight decay straightens; a short training with much of it is told from 20 fresh."""
    net = network(4, depth=4).train()
    x, y = pixels(images), torch.as_tensor(images.y)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    net.eval()
    reestimate_statistics(net, [x])
    traj = wgeo.trace(net, images)
    found = fresh_networks(traj, net, images, 20, READING, seed=0)
    (segment,) = found["segments"]
    assert segment["direction"] == "straighter", segment
    assert segment["as_straight"] == 0

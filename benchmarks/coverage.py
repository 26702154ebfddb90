"""Coverage of the intervals and false positives of the tests, by simulation.

python benchmarks/coverage.py

Checks every kind of interval and p-value that wgeo's verdicts use, on samples whose true value is
known. Certified intervals are left out, because the tests check them in rational arithmetic. Takes
about five minutes on one core; writes coverage.json beside this file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

import wgeo
from wgeo.analysis.fresh import rank_test
from wgeo.analysis.trust import better_preset, trust_of
from wgeo.features.network import inputs
from wgeo.geodesic.gradient_maps import brenier_blocks
from wgeo.geodesic.reliability import length_ratio_at_most
from wgeo.geodesic.resampling import mean_interval
from wgeo.models.fresh import reestimate_statistics

HERE = Path(__file__).parent
Row = dict[str, Any]


def path(n: int, rng: np.random.Generator) -> wgeo.Trajectory:
    """Samples of three classes on a bent path, always from the same distribution."""
    fixed = np.random.default_rng(1)
    steps = [0.5 * fixed.standard_normal((6, 6)) for _ in range(3)]
    labels = rng.integers(0, 3, n)
    layers = [rng.standard_normal((n, 6)) + 2 * np.eye(3, 6)[labels]]
    for step in steps:
        layers.append(layers[-1] + 1.5 * np.tanh(layers[-1] @ step.T))
    return wgeo.Trajectory.from_arrays(layers, labels)


def of_paths(runs: int, n: int) -> Iterator[Row]:
    """Bootstrap intervals of centered values: do they contain the expectation at this N?"""
    names = ("length_ratio", "line_shape_ratio")
    values: dict[str, list[float]] = {name: [] for name in names}
    ends: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for run in range(runs):
        traj = path(n, np.random.default_rng(1000 + run))
        twin = wgeo.straightness(traj, pairs=False, nulls=0, seed=run).segments[0].centred
        for name in names:
            values[name].append(twin[name])
            ends[name].append(twin["intervals"][name])
    for name in names:
        low, high = np.array(ends[name]).T
        inside = (low <= np.mean(values[name])) & (np.mean(values[name]) <= high)
        yield row(f"{name.replace('_', ' ')}, centred, N = {n}", 0.95, inside)


def of_bound(runs: int, n: int) -> Row:
    """The bound by second moments: is it at least the length ratio of Gaussians, known exactly?"""
    deviations = np.array([np.linspace(1, 2, 6), np.linspace(2, 1.5, 6), np.linspace(4, 1, 6)])
    lengths = np.linalg.norm(np.diff(deviations, axis=0), axis=1)
    truth = lengths.sum() / np.linalg.norm(deviations[-1] - deviations[0])
    above = []
    for run in range(runs):
        x = np.random.default_rng(run).standard_normal((n, 6))
        x -= x.mean(0)
        layers = x * deviations[:, None]
        steps = (np.diff(layers, axis=0) ** 2).sum(2).T
        bound = length_ratio_at_most(layers[0], layers[-1], steps)
        above.append(bound is not None and bound >= truth)
    return row(f"length ratio at most, by second moments, N = {n}", 0.95, above)


def of_collapse(runs: int, each: int) -> Row:
    """Intervals of NC1, or of its corrected estimate: do they contain the population's value?"""
    means = np.random.default_rng(9).standard_normal((12, 40))
    sigma = np.linalg.svd((means - means.mean(0)) / np.sqrt(12), compute_uv=False)[:11]
    truth = (0.25 / sigma**2).sum() / 12
    labels = np.repeat(np.arange(12), each)
    inside = []
    for run in range(runs):
        rng = np.random.default_rng(run)
        x = means[labels] + 0.5 * rng.standard_normal((len(labels), 40))
        traj = wgeo.Trajectory.from_arrays([x], labels)
        ends = wgeo.collapse(traj, bootstrap=100, seed=run).layers[0].intervals
        low, high = ends.get("nc1") or ends["nc1_corrected"]
        inside.append(low <= truth <= high)
    return row(f"NC1, {each} samples per class", 0.95, inside)


def of_fresh_networks(runs: int, segments: int) -> Row:
    """How often the rank test reports a difference if the network is one of the fresh ones."""
    rng = np.random.default_rng(0)
    told = []
    for _ in range(runs):
        ratios = np.exp(rng.standard_normal((21, segments)) * 0.1)
        found = rank_test(ratios[0], ratios[1:])
        told.append(any(each["direction"] != "neither" for each in found))
    what = f"differs from 20 fresh networks, segments: {segments}, no true difference"
    return row(what, 0.05, told)


def of_two_networks(runs: int) -> Row:
    """How often `straighter_than` over images finds a difference within one distribution."""
    told = []
    for run in range(runs):
        rng = np.random.default_rng(run)
        first, second = (path(100, rng) for _ in range(2))
        (test,) = wgeo.straighter_than(first, second, paired=False, seed=run)
        told.append(test.direction != "neither")
    return row("differs from another network over images, no true difference", 0.05, told)


def of_paired_networks(runs: int) -> Row:
    """How often `straighter_than` finds a difference on the same images, if there is none."""
    told = []
    for run in range(runs):
        rng = np.random.default_rng(run)
        common = path(100, rng)
        pair = [
            wgeo.Trajectory.from_arrays(
                [x + 0.3 * rng.standard_normal(x.shape) for x in common.segments[0].arrays],
                common.labels,
            )
            for _ in range(2)
        ]
        (test,) = wgeo.straighter_than(*pair, paired=True, seed=runs + run)
        told.append(test.direction != "neither")
    return row("differs from another network on the same images, no true difference", 0.05, told)


def fresh_digits(count: int) -> tuple[list[Any], wgeo.Images]:
    """Small networks with fresh weights, batch statistics from the images."""
    images = wgeo.load_images("digits", limit=120)
    networks = []
    for seed in range(count):
        torch.manual_seed(seed)
        net = wgeo.models.build(
            "isoresnet", num_classes=10, in_channels=1, image_size=8, width=8, depth=4, stride=2
        ).eval()
        pixels = [inputs(net, images, batch) for batch in np.array_split(np.arange(120), 3)]
        reestimate_statistics(net, pixels)
        networks.append(net)
    return networks, images


def of_runs(runs: int) -> Iterator[Row]:
    """How often fresh networks differ: two over images, and four from four over networks."""
    networks, images = fresh_digits(24)
    features = [wgeo.trace(net, images) for net in networks]
    told = [
        wgeo.straighter_than(a, b, centred=True)[0].direction != "neither"
        for a, b in combinations(features[:8], 2)
    ]
    what = "two networks of one recipe differ over images (not evidence about recipes)"
    yield row(what, 0.05, told)
    rng = np.random.default_rng(0)
    told = []
    for _ in range(runs):
        chosen = [features[i] for i in rng.permutation(24)[:8]]
        (test,) = wgeo.straighter_than(chosen[:4], chosen[4:], centred=True)
        told.append(test.direction != "neither")
    yield row("four networks differ from four of the same recipe, over networks", 0.05, told)


def of_jacobians(runs: int, points: int) -> Iterator[Row]:
    """Intervals over a few images: do they contain the mean over all, for two fresh blocks?"""
    networks, images = fresh_digits(1)
    everything = inputs(networks[0], images, np.arange(120))
    options = {"probes": 4, "lanczos": 16, "bootstrap": 0}
    blocks = brenier_blocks(networks[0], everything, ["blocks.0", "blocks.3"], **options).blocks
    rng = np.random.default_rng(points)
    for name in ("asymmetry", "relative_eigenvalue"):
        inside = []
        for block in blocks.values():
            values = block.per_point[name]
            for _ in range(runs):
                found = mean_interval(rng.choice(values, points), positive=name == "asymmetry")
                assert found is not None
                inside.append(found[0] <= values.mean() <= found[1])
        yield row(f"Jacobians, {name.replace('_', ' ')}, {points} images", 0.95, inside)


def of_presets(runs: int) -> Row:
    """How often, on 200 images, one of eight equally good normalizations is called better."""
    rng = np.random.default_rng(0)
    named = []
    for _ in range(runs):
        base = rng.random(200) < 0.8
        correct = {
            str(k): np.where(rng.random(200) < 0.3, rng.random(200) < 0.8, base) for k in range(9)
        }
        named.append(better_preset(correct, "0") is not None)
    return row("another normalization is better, of eight equally good ones", 0.05, named)


def of_guessing(runs: int) -> Row:
    """How often a network that guesses is not reported as guessing."""
    rng = np.random.default_rng(0)
    labels = np.arange(1000) % 10
    x = rng.standard_normal((1000, 2))
    missed = []
    for _ in range(runs):
        guesses = rng.integers(0, 10, 1000)
        traj = wgeo.Trajectory.from_arrays([x], labels, predictions=guesses)
        missed.append(not trust_of(traj)["at_chance"])
    return row("better than guessing, N = 1000, for a network that guesses", 0.01, missed)


def row(what: str, nominal: float, hits: Any) -> Row:
    rate = float(np.mean(hits))
    error = float(np.sqrt(rate * (1 - rate) / len(hits)))
    return {"what": what, "nominal": nominal, "rate": rate, "error": error, "runs": len(hits)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200, help="simulated samples for each row")
    runs = parser.parse_args().runs
    jobs: list[Callable[[], Any]] = [
        lambda: list(of_paths(runs, 100)),
        lambda: list(of_paths(runs // 2, 400)),
        lambda: of_bound(2 * runs, 100),
        lambda: of_bound(2 * runs, 400),
        lambda: of_collapse(runs, 4),
        lambda: of_collapse(runs, 30),
        lambda: of_fresh_networks(10 * runs, 1),
        lambda: of_fresh_networks(10 * runs, 3),
        lambda: of_two_networks(runs),
        lambda: of_paired_networks(4 * runs),
        lambda: list(of_runs(runs)),
        lambda: list(of_jacobians(5 * runs, 4)),
        lambda: list(of_jacobians(5 * runs, 8)),
        lambda: of_presets(10 * runs),
        lambda: of_guessing(runs),
    ]
    rows: list[Row] = []
    for job in jobs:
        found = job()
        for each in found if isinstance(found, list) else [found]:
            rows.append(each)
            print(f"{each['what']}: {each['rate']:.3f} ± {each['error']:.3f} "
                  f"(nominal {each['nominal']}, {each['runs']} runs)", flush=True)  # fmt: skip
    (HERE / "coverage.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Are public pretrained ResNets straight within their stages, and are their blocks optimal?

    python experiments/03_pretrained_resnets/run.py --data cifar10=cifar10.zip \\
        --data resnet20=resnet20.th --data resnet32=resnet32.th
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import Bench, Cell, Lab, by, spread, table

import wgeo
from wgeo.analysis.fresh import fresh_networks
from wgeo.geodesic import SegmentStraightness

METRICS = ("length_ratio", "line_shape_ratio", "action_ratio", "ot_score", "resolution")
CENTRED = ("length_ratio", "line_shape_ratio", "action_ratio", "sqrt_moving_blocks")
NULLS = ("dealt", "turned")
CONFIDENT = 0.99  # smallest probability of the correct class


def measure(cell: Cell, bench: Bench) -> dict[str, Any]:
    """Measure one network on one random subset of images."""
    net, images = loaded(cell, bench)
    traj = wgeo.trace(net, images, pool=cell["pool"])
    straight = wgeo.straightness(traj, bootstrap=0)
    depth = wgeo.collapse(traj).progress["nc1"]
    return {
        "accuracy": traj.accuracy,
        "segments": [
            {
                **{name: getattr(s, name) for name in METRICS},
                "gap": max(g for g in s.interpolation_gap if g is not None),
                **centred(s),
            }
            for s in straight.segments
        ],
        "confident": confident(net, images, cell["pool"]),
        "blocks": [
            {"ot_score": b.ot_score, "resolution": b.resolution, "status": b.status, "via": b.via}
            for b in straight.blocks
        ],
        "tau": depth.kendall_tau,
        "violations": depth.violations,
    }


def centred(segment: SegmentStraightness) -> dict[str, Any]:
    """Return measures with each layer's mean subtracted, and scores of the map and its nulls."""
    null: dict[str, float | None] = dict.fromkeys(NULLS)
    null |= {each.kind: each.score[0] for each in segment.null}
    return {
        **{f"centred_{name}": segment.centred[name] for name in CENTRED},
        "ot_score_centred": segment.ot_score_centred,
        "corr_score": segment.corr_score and segment.corr_score[0],
        **null,
        "power": segment.power,
    }


def confident(net: wgeo.Network, images: wgeo.Images, pool: str) -> dict[str, Any]:
    """Return the number of confidently correct images, and the length ratios of these alone."""
    pooled = wgeo.trace(net, images)
    logits = pooled.last @ pooled.classifier.weight.T + pooled.classifier.bias
    probability = softmax(logits, axis=1)[np.arange(len(images)), images.y]
    kept = np.flatnonzero(probability >= CONFIDENT)
    traj = wgeo.trace(net, replace(images, x=images.x[kept], y=images.y[kept]), pool=pool)
    found = wgeo.straightness(traj, bootstrap=0, pairs=False, nulls=0)
    return {
        "images": len(kept),
        "centred_length_ratio": [s.centred["length_ratio"] for s in found.segments],
    }


def against_fresh(cell: Cell, bench: Bench) -> dict[str, Any]:
    """Rank one network among randomly initialized networks of its architecture."""
    net, images = loaded(cell, bench)
    reading = {"pool": "gap", "device": "cpu"}
    traj = wgeo.trace(net, images, **reading)
    found = fresh_networks(traj, net, images, cell["fresh"], reading, cell["seed"])
    return {"segments": found["segments"]}


def loaded(cell: Cell, bench: Bench) -> tuple[wgeo.Network, wgeo.Images]:
    """Load the trained network and a random subset of images."""
    where = bench.sources[cell["network"]]
    net = wgeo.load_checkpoint(where, arch=f"cifar_{cell['network']}")
    return net, bench.images("cifar10", cell["samples"], cell["split"], seed=cell["seed"])


def main() -> None:
    lab = Lab(__file__)
    cells = [
        {**cell, "samples": lab.settings["samples_flat" if cell["pool"] == "flat" else "samples"]}
        for cell in lab.grid("network", "split", "pool", "seed")
    ]
    results = lab.measure(measure, cells)
    rows, blocks = [], []
    for key, group in by(results, "network", "split", "pool").items():
        for stage in range(len(group[0]["segments"])):
            segments = [result["segments"][stage] for result in group]
            rows.append(
                [
                    *key,
                    stage + 1,
                    *(spread([s[name] for s in segments]) for name in (*METRICS, "gap")),
                ]
            )
        same = [b for r in group for b in r["blocks"] if b["via"] == "identity"]
        judged = [b for b in same if (b["resolution"] or 0) >= 0.5]
        exact = sum(b["ot_score"] >= 1 - 1e-6 for b in judged)
        blocks.append(
            [
                *key,
                group[0]["cell"]["samples"],
                spread([r["accuracy"] for r in group]),
                f"{sum(b['status'] == 'certified' for b in same)} of {len(same)}",
                f"{len(judged)} of {len(same)}",
                f"{exact} of {len(judged)}",
                f"{min((b['ot_score'] for b in judged), default=np.nan):.4f}",
                spread([r["violations"] for r in group], ".1f"),
            ]
        )
    head = ["network", "images", "pool"]
    names = [name.replace("_", " ") for name in METRICS]
    lab.write("stages", table([*head, "stage", *names, "interpolation gap"], rows))
    lab.write(
        "blocks",
        table(
            [
                *(*head, "N", "accuracy", "certified", "resolution ≥ 1/2"),
                *("own pairing optimal", "lowest OT score of those", "rises of NC1"),
            ],
            blocks,
        ),
    )
    lab.write("centred", without_means(results))
    several = {"fresh": lab.settings["fresh"], "samples": lab.settings["samples_fresh"]}
    ranked = lab.measure(against_fresh, lab.grid("network", "split", "seed", **several))
    lab.write("reference", reference(ranked))


def without_means(results: list[dict[str, Any]]) -> str:
    """Tabulate each stage with its layers' means subtracted, and on confident images alone."""
    head = ["network", "images", "pool", "stage", *(name.replace("_", " ") for name in CENTRED)]
    head += ["OT score", "correlation score", "dealt", "turned", "detectable"]
    head += ["images at 0.99", "length ratio of those"]
    rows = []
    for key, group in by(results, "network", "split", "pool").items():
        for stage, segments in enumerate(zip(*(r["segments"] for r in group), strict=True)):
            names = [*(f"centred_{name}" for name in CENTRED), "ot_score_centred", "corr_score"]
            sure = [result["confident"] for result in group]
            rows.append(
                [
                    *(*key, stage + 1),
                    *(spread([s[name] for s in segments]) for name in (*names, *NULLS)),
                    f"{sum(s['power'] is True for s in segments)} of {len(segments)}",
                    f"{np.mean([each['images'] for each in sure]):.0f}",
                    spread([each["centred_length_ratio"][stage] for each in sure]),
                ]
            )
    return table(head, rows)


def reference(results: list[dict[str, Any]]) -> str:
    """Tabulate the centered line-shape ratio of each trained stage, and those of fresh networks."""
    head = ["network", "images", "stage", "trained", "fresh weights: median", "range"]
    rows = []
    for key, group in by(results, "network", "split").items():
        for stage, tests in enumerate(zip(*(result["segments"] for result in group), strict=True)):
            ends = (min(test["low"] for test in tests), max(test["high"] for test in tests))
            rows.append(
                [
                    *(*key, stage + 1),
                    *(spread([test[name] for test in tests]) for name in ("value", "median")),
                    "{:.3g} to {:.3g}".format(*ends),
                    ", ".join(f"{test['adjusted_p']:.2g}" for test in tests),
                    ", ".join(dict.fromkeys(test["direction"] for test in tests)),
                ]
            )
    return table([*head, "p of each subset", "than the fresh ones"], rows)


if __name__ == "__main__":
    main()

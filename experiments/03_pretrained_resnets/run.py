"""Are ResNets that others trained straight within their stages, and are their blocks optimal?

    python experiments/03_pretrained_resnets/run.py --data cifar10=cifar10.zip \\
        --data resnet20=resnet20.th --data resnet32=resnet32.th
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import Bench, Cell, Lab, by, spread, table

import wgeo

FIGURES = ("length_ratio", "line_shape_ratio", "action_ratio", "ot_score", "resolution")


def measure(cell: Cell, bench: Bench) -> dict[str, Any]:
    """Measure one network on one random subset of images."""
    where = bench.sources[cell["network"]]
    net = wgeo.load_checkpoint(where, arch=f"cifar_{cell['network']}")
    images = bench.images("cifar10", cell["samples"], cell["split"], seed=cell["seed"])
    traj = wgeo.trace(net, images, pool=cell["pool"])
    straight = wgeo.straightness(traj, bootstrap=0)
    tests: Sequence[Any] = ()
    if cell["pool"] == "gap":
        fresh, _ = wgeo.models.untrained(net.module, cell["seed"])
        tests = wgeo.straighter_than(traj, wgeo.trace(fresh, _as(net, images)))
    depth = wgeo.collapse(traj).progress["nc1"]
    return {
        "accuracy": traj.accuracy,
        "segments": [
            {
                **{name: getattr(s, name) for name in FIGURES},
                "gap": max(g for g in s.interpolation_gap if g is not None),
            }
            for s in straight.segments
        ],
        "reference": [test.to_dict() for test in tests],
        "blocks": [
            {"ot_score": b.ot_score, "resolution": b.resolution, "status": b.status, "via": b.via}
            for b in straight.blocks
        ],
        "tau": depth.kendall_tau,
        "violations": depth.violations,
    }


def _as(net: wgeo.Network, images: wgeo.Images) -> wgeo.Images:
    """The images, with the trained network's normalization."""
    from dataclasses import replace

    from wgeo.features.network import normalization_for

    return replace(images, normalize=normalization_for(net, images))


def main() -> None:
    lab = Lab(__file__)
    cells = [
        {**cell, "samples": lab.settings["samples_flat" if cell["pool"] == "flat" else "samples"]}
        for cell in lab.grid("network", "split", "pool", "seed")
    ]
    results = lab.measure(measure, cells)
    rows, blocks, references = [], [], []
    for key, group in by(results, "network", "split", "pool").items():
        for stage in range(len(group[0]["segments"])):
            segments = [result["segments"][stage] for result in group]
            rows.append(
                [
                    *key,
                    stage + 1,
                    *(spread([s[name] for s in segments]) for name in (*FIGURES, "gap")),
                ]
            )
            if group[0]["reference"]:
                tests = [result["reference"][stage] for result in group]
                values = (
                    spread([test[name] for test in tests])
                    for name in ("value", "reference", "effect_size")
                )
                largest = max(test["p_value"] for test in tests)
                references.append([*key[:2], stage + 1, *values, f"{largest:.2g}"])
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
    names = [name.replace("_", " ") for name in FIGURES]
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
    lab.write(
        "reference",
        table(
            [*head[:2], "stage", "trained", "fresh weights", "effect size d", "largest p"],
            references,
        ),
    )


if __name__ == "__main__":
    main()

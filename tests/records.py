"""Records of schema 2, made up: as an analysis writes them, and as hostile as users are."""

from __future__ import annotations

import json
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from wgeo.analysis import THRESHOLDS

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HOSTILE = (
    "<script>alert(1)</script>",
    "**bold** | pipe",
    "$x^2$ and $5",
    "_underscore_",
    "`code` {math}`x` {{ jinja }}",
    "line\nbreak",
    "中文 emoji 🦆",
    "[link](http://evil.example/x.js)",
    "\x00\x1b[31mcontrol \udc80 --> ]]>",
    "a name so long that no legend and no table column was ever meant to hold it, " * 3,
)


def sample_record(
    stages: tuple[int, ...] = (4, 3, 3),
    class_names: tuple[str, ...] | list[str] = CIFAR,
    *,
    models: bool = True,
    names: str = "layer{stage}.{block}",
    seed: int = 0,
) -> dict[str, Any]:
    """A record of a network with `stages[i]` layers in stage i (the stem is in the first)."""
    rng = np.random.default_rng(seed)
    layers: list[dict[str, Any]] = [{"name": "input", "stage": None, "width": 3072}]
    layers.append({"name": "stem", "stage": 0, "width": 16})
    for stage, count in enumerate(stages):
        for block in range(count - (stage == 0)):
            name = names.format(stage=stage + 1, block=block)
            layers.append({"name": name, "stage": stage, "width": 16 << stage})
    depth = len(layers)
    for i, layer in enumerate(layers):
        layer["collapse"] = _collapse(i / (depth - 1), len(class_names), rng, last=i == depth - 1)
    record: dict[str, Any] = {
        "schema": 2,
        "created": "2025-01-02T03:04:05+00:00",
        "command": "wgeo analyze resnet20.th --arch cifar_resnet20 --data cifar10.zip --out RUN",
        "versions": {"wgeo": "0.1.0", "python": "3.11.7", "torch": "2.6.0", "numpy": "2.0.0"},
        "seed": 0,
        "device": "cpu",
        "provenance": {
            "checkpoint": "resnet20.th",
            "sha256": "12fca82f" * 8,
            "arch": "cifar_resnet20",
            "arch_from": "tensors",
            "num_classes": len(class_names),
            "epoch": None,
            "data": "cifar10.zip",
            "split": "test",
            "samples": 2000,
            "pool": "gap",
            "class_names": list(class_names),
        },
        "accuracy": 0.8145,
        "layers": layers,
        "blocks": _blocks(layers, rng),
        "segments": _segments(layers, len(class_names), rng),
        "progress": {
            "nc1": {
                "kendall_tau": -1.0,
                "violations": 0,
                "monotone": True,
                "reached": "layer2.1",
                "interval": [-1.0, -0.9],
            },
            "cdnv": {"kendall_tau": -0.96, "violations": 1, "monotone": False},
            "nc2_etf": {"kendall_tau": None, "violations": None, "monotone": None},
        },
        "separation": {"kendall_tau": 0.9, "violations": 1, "monotone": False},
        "separation_law": _law(layers, rng),
        "learned_at": "layer2.1",
        "trust": _trust(len(class_names)),
        "thresholds": dict(THRESHOLDS),
        "brenier": {"points": 16},
        "verdict": [
            {
                "claim": "straightness",
                "words": "From stem to layer1.2 the path is 1.12 times as long as the geodesic.",
                "evidence": {"layers": ["stem", "layer1.2"], "length_ratio_centred": 1.12},
                "strength": "shown",
            },
            {
                "claim": "collapse",
                "words": "The classes tighten with depth: NC1 falls at every layer.",
                "evidence": {"nc1": 0.27, "interval": None, "kendall_tau": -1.0},
                "strength": "suggested",
            },
        ],
    }
    names = [layer["name"] for layer in layers[2:]]
    if len(names) > 1:
        record["alignment"] = _alignment(names, rng)
    _judge(record["blocks"], record["segments"], np.random.default_rng([seed, 2]))
    record["reference"] = _reference(record["segments"])
    if models:
        models_of = {"geodesic_model": 1.3, "mufm": 0.8, "mufm_given": 0.6, "ufm": 0.0}
        for model, factor in models_of.items():
            predicted = [
                {
                    "name": la["name"],
                    "missed": 0.3 * factor,
                    "w2": 0.5 * factor,
                    "stage": la["stage"],
                    "time": i / (depth - 1),
                    "collapse": {k: _scaled(v, factor) for k, v in la["collapse"].items()},
                }
                for i, la in enumerate(layers[-1:] if model == "ufm" else layers[1:])
            ]
            record[model] = {"layers": predicted}
        record["mufm"] |= {
            "held_out_r2": 0.61803,
            "solution": {"objective": 0.0123456789, "settings": {"weight_decay": 5e-4}},
        }
    return json.loads(json.dumps(record))


def _trust(classes: int) -> dict[str, Any]:
    return {
        "samples": 2000,
        "samples_per_class": 2000 // classes,
        "duplicates": 0,
        "classes": {"present": classes, "head": classes},
        "accuracy": 0.8145,
        "chance": 1 / classes,
        "chance_p": 0.0,
        "at_chance": False,
        "claimed_accuracy": {"key": "best_prec1", "value": 0.9172},
        "normalization": {
            "name": "imagenet",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "source": "architecture",
            "images": 200,
            "tried": [{"name": "imagenet", "accuracy": 0.815}, {"name": "half", "accuracy": 0.8}],
            "better": None,
        },
    }


def _reference(segments: list[dict[str, Any]]) -> dict[str, Any]:
    """The network among 20 networks of its architecture with fresh weights."""
    networks = [
        {"seed": k, "segments": [{"centred": 1.4 + 0.01 * k, "raw": 1.2} for _ in segments]}
        for k in range(20)
    ]
    rows = [
        {
            "layers": segment["layers"],
            "stage": stage,
            "value": 1.2,
            "median": 1.495,
            "low": 1.4,
            "high": 1.59,
            "as_straight": 0,
            "as_bent": 20,
            "rank_p": 1 / 21,
            "adjusted_p": 1 / 21,
            "direction": "straighter",
        }
        for stage, segment in enumerate(segments)
    ]
    return {
        "kind": "init",
        "statistic": "line_shape_ratio_centred",
        "images": 500,
        "networks": networks,
        "segments": rows,
        "kept": [],
    }


def _judge(
    blocks: list[dict[str, Any]], segments: list[dict[str, Any]], rng: np.random.Generator
) -> None:
    """Add the values of schema 2 about optimality and centred paths to blocks and segments."""
    for block in blocks:
        block |= {"via": "identity", **_optimality(rng, 2)}
        block["intervals"] = _around(block, "ot_score_centred", "corr_score")
    for segment in segments:
        count = len(segment["layers"]) - 1
        segment |= _optimality(rng, count + 1)
        segment["intervals"] |= _around(segment, "ot_score_centred", "corr_score")
        moving = {"moving_blocks": 0.8 * count, "sqrt_moving_blocks": (0.8 * count) ** 0.5}
        segment |= moving
        segment["speed_deviation"] = 0.4
        segment["length_over_runs"] = _runs(count, segment["length_ratio"])
        ratios = ("length_ratio", "action_ratio", "line_shape_score", "line_shape_ratio")
        twin = {key: 1.15 * segment[key] for key in ratios}
        segment["centred"] = {
            **twin,
            **moving,
            "distance": 2.4,
            "length": 2.4 * twin["length_ratio"],
            "length_over_runs": _runs(count, twin["length_ratio"]),
            "intervals": {key: [value - 0.03, value + 0.03] for key, value in twin.items()},
        }
        segment["pairs"] = _pairs(segment["layers"], rng) if count > 1 else None


def _optimality(rng: np.random.Generator, layers: int) -> dict[str, Any]:
    score, null = float(1 - 0.3 * rng.uniform() ** 2), float(rng.uniform(0.1, 0.9))
    return {
        "samples": 2000,
        "distinct": 2000,
        "spread": [1.0 + 0.1 * k for k in range(layers)],
        "spread_ratio": 1 + 0.1 * (layers - 1),
        "relative_displacement": 0.5,
        "shift_share": 0.3,
        "ot_score_centred": float(1 - 0.05 * rng.uniform()),
        "corr_score": [score, score - 1e-6, score],
        "null": [
            {
                "kind": kind,
                "score": [value, value - 1e-6, value],
                "draws": [value],
                "own": [score, score - 1e-6, score],
                "samples": 2000,
            }
            for kind, value in (("dealt", null), ("turned", 0.9 * null))
        ],
        "power": score > null + THRESHOLDS["power_margin"],
    }


def _around(row: dict[str, Any], *keys: str) -> dict[str, list[float]]:
    values = {key: row[key][0] if isinstance(row[key], list) else row[key] for key in keys}
    return {key: [value - 0.01, min(value + 0.01, 1.0)] for key, value in values.items()}


def _runs(count: int, ratio: float) -> dict[str, float]:
    """Lengths over 2, 4, 8, ... and all blocks, over W2 end to end: they grow to `ratio`."""
    runs = [*(k for k in (2, 4, 8, 16, 32) if k < count), count]
    return {str(k): 1 + (ratio - 1) * k / count for k in runs}


def _pairs(layers: list[str], rng: np.random.Generator) -> dict[str, Any]:
    """Symmetric matrices over all pairs of at most 9 layers, as in an analysis."""
    chosen = [layers[round(k)] for k in np.linspace(0, len(layers) - 1, min(len(layers), 9))]
    distance, score = np.zeros((len(chosen),) * 2), np.ones((len(chosen),) * 2)
    null: list[list[float | None]] = [[None] * len(chosen) for _ in chosen]
    for i, j in combinations(range(len(chosen)), 2):
        distance[i, j] = distance[j, i] = 3.0 * (j - i) / (len(chosen) - 1)
        score[i, j] = score[j, i] = 1 - 0.4 * rng.uniform() * (j - i) / (len(chosen) - 1)
        if j == i + 1 or j == len(chosen) - 1:
            null[i][j] = null[j][i] = float(rng.uniform(0.1, 1.0))
    return {
        "layers": chosen,
        **{key: distance.tolist() for key in ("distance", "lower", "upper")},
        **{key: score.tolist() for key in ("corr_score", "corr_low", "corr_high")},
        "null": null,
    }


def _scaled(value: Any, factor: float) -> Any:
    return value * factor if isinstance(value, float) else value


def _collapse(t: float, classes: int, rng: np.random.Generator, *, last: bool) -> dict[str, Any]:
    wobble = float(np.exp(0.05 * rng.normal()))
    return {
        "nc1": 40 * np.exp(-5 * t) * wobble,
        "nc1_quotient": 12 * np.exp(-4 * t) * wobble,
        "class_variability": [12 * np.exp(-4 * t) * (1 + 0.1 * k) for k in range(classes)],
        "nc2_equinorm": 0.5 - 0.4 * t,
        "nc2_equiangle": 0.6 * np.exp(-2 * t) * wobble,
        "nc2_etf": 1.1 - 0.8 * t,
        "nc3": 0.3 if last else None,
        "ncc_accuracy": 0.25 + 0.5 * t**1.5,
        "ncc_mismatch": 0.7 - 0.66 * t,
        "undefined": {} if last else {"nc3": "only the last layer meets the classifier"},
        "cdnv": 20 * np.exp(-4 * t) * wobble,
        "effective_rank": min(classes - 1, 2 + 7 * t),
        "within": 5.0 + t,
        "between": 0.4 + 6 * t,
    }


def _blocks(layers: list[dict[str, Any]], rng: np.random.Generator) -> list[dict[str, Any]]:
    blocks = []
    for source, target in pairwise(layers[1:]):
        paired = float(rng.uniform(0.3, 2.5))
        score = float(1 - 0.02 * rng.uniform() ** 2)
        w2 = paired * score**0.5
        certified = rng.uniform() < 0.8
        blocks.append(
            {
                "source": source["name"],
                "target": target["name"],
                "distance": w2,
                "lower": w2 * (1 - 1e-9 if certified else 0.9),
                "upper": w2 * (1 if certified else 1.04),
                "paired": paired,
                "ot_score": score,
                "resolution": float(rng.uniform(0.2, 3)),
                "status": "certified" if certified else "bounded",
                "solver": "exact",
                "seconds": 0.8,
                "brenier": _brenier(rng),
            }
        )
    return blocks


def _law(layers: list[dict[str, Any]], rng: np.random.Generator) -> dict[str, Any]:
    segments = []
    for stage in sorted({layer["stage"] for layer in layers if layer["stage"] is not None}):
        own = [layer for layer in layers if layer["stage"] == stage]
        if len(own) < 3:
            continue
        separation = [10 * layer["collapse"]["nc1"] for layer in own]
        fitted = {"rate": 0.6, "correlation": -0.998, "curvature": 0.1}
        segments.append(
            {
                "layers": [layer["name"] for layer in own],
                "stage": stage,
                "separation": separation,
                **fitted,
                "half_layers": 1.36,
                "compression": [d / 9 for d in separation],
                **{f"compression_{key}": value for key, value in fitted.items()},
                "discrimination": np.linspace(0.2, 0.9, len(own)).tolist(),
                "discrimination_slope": 0.1,
                "discrimination_correlation": 0.97,
                "intervals": {key: [v - 0.001, v + 0.001] for key, v in fitted.items()},
            }
        )
    return {"segments": segments, "samples_per_class": 200}


def _alignment(names: list[str], rng: np.random.Generator) -> dict[str, Any]:
    overlaps = ("overlap_uv", "overlap_uu", "overlap_vv", "diagonal")
    return {
        "blocks": [
            {
                "name": name,
                "end": "relu",
                "dimension": 1024,
                "singular_values": [3.0, 2.0, 1.0],
                **dict.fromkeys(("overlap", "sign", "share", "asymmetry", "along"), 0.5),
                "participation": 40.0,
                "path_share": 0.1,
                "residual": 1e-3,
                "gap": 0.1,
            }
            for name in names
        ],
        "pairs": [
            {
                "source": a,
                "target": b,
                **{key: float(rng.uniform()) for key in overlaps},
                "coupling": 0.9 if abs(i - j) == 1 else None,
                "coupling_signed": 1.0 if abs(i - j) == 1 else None,
            }
            for i, a in enumerate(names)
            for j, b in enumerate(names)
            if i != j
        ],
        "segments": [
            {
                "blocks": names,
                "dimension": 1024,
                "vectors": 3,
                "chance": 3 / 1024,
                "overlap_uv": 0.3,
                "overlap_uu": 0.4,
                "overlap_vv": 0.2,
                "coupling": 0.9,
                "coupling_signed": 1.0,
                "chance_coupling": 0.99,
                "slopes": [0.6, 0.7, None],
                "intervals": {"overlap_uv": [0.2, 0.4], "slope": [0.5, 0.7]},
            }
        ],
        "jacobian": "residual",
        "vectors": 3,
        "points": 4,
        "left_out": {},
        "seconds": 1.0,
        "reset_statistics": False,
    }


def _brenier(rng: np.random.Generator) -> dict[str, Any]:
    asymmetry, lowest = float(rng.uniform(0.01, 0.4)), float(rng.normal())
    reasons = ["asymmetry"] * (asymmetry > 0.02) + ["eigenvalue"] * (lowest < -0.2)
    return {
        "asymmetry": asymmetry,
        "displacement_asymmetry": 2 * asymmetry,
        "min_eigenvalue": lowest,
        "lowest_eigenvalue": lowest - 0.4,
        "relative_eigenvalue": 0.5 * lowest,
        "negative_share": float(lowest < 0),
        "excluded": bool(reasons),
        "excluded_by": reasons,
        "points": 16,
        "intervals": {
            "asymmetry": [0.9 * asymmetry, 1.1 * asymmetry],
            "min_eigenvalue": [lowest - 0.1, lowest + 0.1],
        },
    }


def _sample_sizes(stage: int) -> dict[str, Any]:
    points = [
        {
            "size": 125 << k,
            "repeats": 4 if k < 4 else 1,
            "distance": 3.0 + 0.1 / (k + 1),
            "distance_deviation": 0.05 if k < 4 else None,
            "ot_score": 1 - 0.01 * k,
            "ot_score_deviation": 0.004 if k < 4 else None,
            "resolution": 0.3 * 1.3 ** (k - stage),
        }
        for k in range(5)
    ]
    return {"points": points, "enough": 4000 << stage}


def _segments(
    layers: list[dict[str, Any]], classes: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    segments = []
    staged = [layer for layer in layers if layer["stage"] is not None]
    for stage in sorted({layer["stage"] for layer in staged}):
        names = [layer["name"] for layer in staged if layer["stage"] == stage]
        if stage:
            names.insert(0, f"{names[0]}.shortcut")
        t = np.linspace(0, 1, len(names))[:, None, None]
        start, end = rng.normal(size=(2, classes, 2)) * [[[1]], [[4]]]
        bend = 0.8 * np.sin(np.pi * t) * rng.normal(size=(classes, 2))
        ratio = 1.1 + 0.3 * stage
        figures = {
            "length_ratio": ratio,
            "action_ratio": ratio**2 + 0.2,
            "line_shape_score": ratio + 0.1,
            "line_shape_ratio": ratio - 0.02,
            "ot_score": 1 - 0.02 * stage,
        }
        segments.append(
            {
                "layers": names,
                "distance": 3.0,
                "length": 3.0 * ratio,
                **figures,
                "turning_angle": 41.0,
                "resolution": 2.1 - stage,
                "interpolation_gap": ((0.4 - 0.1 * stage) * np.sin(np.pi * t.ravel())).tolist(),
                "interpolation_time": (t.ravel() ** 1.3).tolist(),
                "intervals": {
                    k: [v - 0.03, min(v + 0.03, 1.0) if k == "ot_score" else v + 0.03]
                    for k, v in figures.items()
                },
                "sample_sizes": _sample_sizes(stage),
                "view": _view((1 - t) * start + t * end + bend, rng),
            }
        )
    return segments


def _view(means: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """Class means (layers, classes, 2), and three samples a class around each."""
    labels = np.repeat(np.arange(means.shape[1]), 3)
    ends = np.pad(means[-1] - means[-1].mean(0), ((0, 0), (0, 1)))
    return {
        "end": {
            "class_means": ends.tolist(),
            "points": (
                ends[labels] + 0.3 * np.sin(np.arange(3 * len(labels)).reshape(-1, 3))
            ).tolist(),
        },
        "classes": list(range(means.shape[1])),
        "class_means": means.tolist(),
        "explained": [0.61, 0.2],
        "points": (means[:, labels] + 0.3 * rng.normal(size=(len(labels), 2))).tolist(),
        "labels": labels.tolist(),
    }


def damaged(record: dict[str, Any]) -> dict[str, Any]:
    """The same record with undefined values wherever a schema-2 record may have one."""
    record = json.loads(json.dumps(record))
    for layer in record["layers"][::2]:
        layer["collapse"] = dict.fromkeys(layer["collapse"])
    for block in record["blocks"][::2]:
        block |= dict.fromkeys(("distance", "lower", "upper", "ot_score", "resolution"))
        block |= dict.fromkeys(("corr_score", "ot_score_centred", "spread_ratio", "power"))
        block["null"] = []
    segment = record["segments"][0]
    segment |= dict.fromkeys(("length_ratio", "action_ratio", "ot_score", "turning_angle"))
    segment["intervals"] = {"length_ratio": None, "action_ratio": [None, None]}
    segment["interpolation_gap"] = [None] * len(segment["interpolation_gap"])
    segment["view"] = None
    segment |= dict.fromkeys(("corr_score", "sqrt_moving_blocks", "power", "pairs"))
    segment |= {"null": [], "centred": {"length_ratio": None, "intervals": {}}}
    for other in record["segments"][1:]:
        other["length_over_runs"] = None
        other["pairs"]["null"] = None
        other["pairs"]["corr_score"][0][-1] = other["pairs"]["corr_low"][0][-1] = None
    record["accuracy"] = None
    record["progress"], record["verdict"] = {}, []
    for model in ("geodesic_model", "mufm", "mufm_given", "ufm"):
        record.pop(model, None)
    for point in segment["sample_sizes"]["points"]:
        point |= dict.fromkeys(("ot_score", "ot_score_deviation", "resolution"))
    segment["sample_sizes"]["enough"] = None
    record["blocks"][0]["brenier"] |= {"asymmetry": None, "intervals": {}}
    return record


def sample_series(count: int = 4, *, epochs: bool = True) -> dict[str, Any]:
    """A series of analyses, over training or across networks."""
    rows = []
    for k in range(count):
        record = sample_record((4, 3), seed=k)
        if epochs:
            record["provenance"] |= {"epoch": 0 if k == 0 else 4**k, "arch_from": "file"}
        rows.append({**record, "name": f"epoch-{k}", "folder": f"epoch-{k}"})
    return {"schema": 2, "axis": "epoch" if epochs else "name", "analyses": rows}


OF_A_RUN = {"seconds", "created", "command", "versions", "job", "effort", "batch_size"}


def differences(a, b, rel, path=""):
    """Places at which two records differ: numbers by more than `rel`, other values at all."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [key for key in {**a, **b} if key not in OF_A_RUN]
        found = [differences(a.get(k), b.get(k), rel, f"{path}.{k}") for k in keys]
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        found = [differences(x, y, rel, f"{path}[{i}]") for i, (x, y) in pairs]
    elif isinstance(a, float) and isinstance(b, float):
        same = abs(a - b) <= rel * max(abs(a), abs(b), 1e-6)
        found = [] if same else [[f"{path}: {a!r} and {b!r}"]]
    else:
        found = [] if a == b else [[f"{path}: {a!r} and {b!r}"]]
    return [place for places in found for place in places]

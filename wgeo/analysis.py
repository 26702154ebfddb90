"""The whole analysis in order: the only module that knows it. The record is its result."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from . import plots, report
from .arrays import pick_device
from .checkpoint import Network
from .collapse import Collapse, collapse
from .compare import compare
from .data import Images
from .errors import FeatureError, RecordError
from .features import normalization_for, trace
from .files import writable, write_aside
from .geodesic import Straightness, straightness, verdict
from .progress import track
from .trajectory import Segment, Trajectory
from .transport import Exact, chain

SCHEMA = 1
_IN_VIEW = 200  # samples a report shows moving
_NEEDED: dict[str, type] = {
    **dict.fromkeys(("provenance", "progress"), dict),
    **dict.fromkeys(("layers", "blocks", "segments"), list),
    "verdict": str,
}
_OPTIONAL = dict.fromkeys(("geodesic_model", "mufm", "versions"), dict)
_PACKAGES = ("wgeo", "torch", "torchvision", "numpy", "scipy", "pot", "geomloss", "scikit-learn")


@dataclass(frozen=True, eq=False)
class Analysis:
    """What was measured of one network on one set of images.

    Attributes
    ----------
    record : dict
        Everything as plain numbers and strings; `analysis.json` holds it (schema 1).
    trajectory : Trajectory or None
        The features; None where the record was loaded from a file.
    """

    record: dict[str, Any]
    trajectory: Trajectory | None = field(default=None, repr=False)

    @property
    def verdict(self) -> str:
        """What the figures say, in words."""
        return str(self.record["verdict"])

    def to_dict(self) -> dict[str, Any]:
        """Return the record."""
        return self.record

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``analysis.json`` and the figures into a folder; return the record's path.

        Raises
        ------
        RecordError
            The folder cannot be written.
        """
        folder = writable(folder)
        text = json.dumps(self.record, indent=1, allow_nan=False)
        write_aside(folder / "analysis.json", text)
        plots.figures(self.record, folder / "figures")
        return folder / "analysis.json"

    def report(self, folder: str | os.PathLike[str]) -> Path:
        """Save into a folder and build its Sphinx report; return the path of its first page."""
        self.save(folder)
        return report.build(Path(folder))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Analysis:
        """Read a saved analysis back.

        Parameters
        ----------
        folder : path
            The run's folder, or its ``analysis.json``.

        Raises
        ------
        RecordError
            No record there, or one that is damaged or of another schema.
        """
        path = Path(folder)
        path = path / "analysis.json" if path.is_dir() else path
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RecordError(f"No analysis at {path}; make one with `wgeo analyze`.") from error
        except (OSError, ValueError) as error:
            raise RecordError(f"{path} is not a readable record: {error}") from error
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            found = record.get("schema") if isinstance(record, dict) else type(record).__name__
            raise RecordError(f"{path} has schema {found!r}; this wgeo reads schema {SCHEMA}.")
        missing = [key for key in _NEEDED if key not in record]
        if missing:
            raise RecordError(f"{path} lacks {', '.join(missing)}; analyse the checkpoint again.")
        kinds = {**_NEEDED, **_OPTIONAL}
        wrong = [key for key in kinds if key in record and not isinstance(record[key], kinds[key])]
        for key in ("layers", "blocks", "segments"):
            if key not in wrong and not all(isinstance(row, dict) for row in record[key]):
                wrong.append(key)
        if wrong:
            raise RecordError(
                f"{path} is damaged in {', '.join(wrong)}; analyse the checkpoint again."
            )
        return cls(record)


def analyze(
    net: Network | nn.Module,
    images: Images | tuple[Any, Any],
    *,
    pool: str = "gap",
    tap: str = "post",
    layers: Sequence[str] | None = None,
    solver: Any = None,
    batch_size: int = 256,
    bootstrap: int = 200,
    mufm: bool = False,
    seed: int = 0,
    device: str = "auto",
    command: str | None = None,
) -> Analysis:
    """Analyse a network on labelled images: transport, straightness, collapse and models.

    Parameters
    ----------
    net : Network or nn.Module
    images : Images, or (x, labels)
    pool, tap, layers, batch_size, device
        How features are read; see `trace`.
    solver : Exact, Sinkhorn, Sliced or Gaussian
        How W2 is measured; default ``Exact()``.
    bootstrap : int
        Resamples behind the 95 % intervals; 0 for none.
    mufm : bool
        Fit the multilayer unconstrained-feature model too, which takes up to minutes.
    seed : int
        Of everything random.
    command : str, optional
        What made this analysis, for the record.

    Raises
    ------
    FeatureError
        Fewer than two classes, NaN in a layer, no blocks.
    """
    traj = trace(net, images, pool, tap, layers=layers, batch_size=batch_size, device=device)
    provenance = _provenance(net, images, traj)
    return analyze_trajectory(
        traj,
        solver=solver,
        bootstrap=bootstrap,
        mufm=mufm,
        seed=seed,
        provenance=provenance,
        device=str(pick_device(device)),
        command=command,
    )


def analyze_trajectory(
    traj: Trajectory,
    *,
    solver: Any = None,
    bootstrap: int = 200,
    mufm: bool = False,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
    device: str = "cpu",
    command: str | None = None,
) -> Analysis:
    """Analyse features that are already there; see `analyze`."""
    present = np.unique(traj.labels)
    if len(present) < 2:
        raise FeatureError(
            f"All {len(traj)} samples are of one class ({present[0]}); collapse compares classes. "
            "Give images of at least two."
        )
    solver = Exact() if solver is None else solver
    links = chain(traj, solver)
    straight = straightness(traj, solver=solver, chain=links, bootstrap=bootstrap, seed=seed)
    steps = iter(track(("collapse", "models"), "measuring", 2))
    next(steps)
    collapsed = collapse(traj)
    next(steps)
    models = compare(traj, mufm=mufm, seed=seed)
    for _ in steps:
        pass
    record = {
        "schema": SCHEMA,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command or "wgeo.analyze(...)",
        "versions": versions(),
        "seed": seed,
        "device": device,
        "provenance": {
            "checkpoint": None,
            "sha256": None,
            "arch": None,
            "num_classes": traj.num_classes,
            "data": traj.settings.get("data"),
            "split": traj.settings.get("split"),
            "samples": len(traj),
            "pool": traj.settings.get("pool"),
            "class_names": list(traj.class_names),
            **(provenance or {}),
        },
        "accuracy": traj.accuracy,
        "layers": collapsed.to_dict()["layers"],
        **_straight(straight, traj),
        "progress": collapsed.to_dict()["progress"],
        **models.to_dict(),
        "verdict": f"{verdict(straight)} {_progress_in_words(collapsed)}",
    }
    return Analysis(_plain(record), traj)


def versions() -> dict[str, str]:
    """Versions of everything that could change a number."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _provenance(
    net: Network | nn.Module, images: Images | tuple[Any, Any], traj: Trajectory
) -> dict[str, Any]:
    found: dict[str, Any] = (
        net.provenance.to_dict() if isinstance(net, Network) else {"arch": type(net).__name__}
    )
    if isinstance(images, Images):
        used = normalization_for(net, images)
        found["normalize"] = {"name": used.name, "mean": list(used.mean), "std": list(used.std)}
    return {**found, **traj.settings}


def _straight(straight: Straightness, traj: Trajectory) -> dict[str, Any]:
    found = straight.to_dict()
    views = [class_view(segment, traj.labels) for segment in traj.segments]
    segments = [
        {**figures, "view": view} for figures, view in zip(found["segments"], views, strict=True)
    ]
    return {"blocks": found["blocks"], "segments": segments}


def class_view(segment: Segment, labels: np.ndarray) -> dict[str, Any]:
    """Return the class means of every layer in the plane that shows most of their movement.

    The plane is that of the first two principal components of all class means of the segment's
    layers together; ``explained`` is the share of their variance along each. ``points`` are the
    first samples of every class, about `_IN_VIEW` in all, in the same plane; ``labels`` say which
    of ``classes`` each is of.
    """
    classes = np.unique(labels)
    means = np.stack(
        [
            [array[labels == k].mean(0, dtype=np.float64) for k in classes]
            for array in segment.arrays
        ]
    )  # (layers, classes, d)
    flat = means.reshape(-1, means.shape[-1])
    centre = flat.mean(0)
    _, scales, axes = np.linalg.svd(flat - centre, full_matrices=False)

    def seen(x: np.ndarray) -> np.ndarray:
        plane = (x - centre) @ axes[:2].T
        return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))

    each = max(1, _IN_VIEW // len(classes))
    shown = np.concatenate([np.flatnonzero(labels == k)[:each] for k in classes])
    digits = 4 - int(np.ceil(np.log10(scales[0]))) if scales[0] > 0 else 4  # enough to draw
    points = np.stack([seen(array[shown]) for array in segment.arrays])
    shares = np.zeros(2)
    if scales.any():
        kept = (scales**2 / (scales**2).sum())[:2]
        shares[: len(kept)] = kept
    return {
        "class_means": seen(flat).reshape(len(means), len(classes), 2).tolist(),
        "classes": classes.tolist(),
        "explained": shares.tolist(),
        "points": points.round(digits).tolist(),
        "labels": np.searchsorted(classes, labels[shown]).tolist(),
    }


def _progress_in_words(collapsed: Collapse) -> str:
    nc1 = collapsed.progress.get("nc1")
    if nc1 is None or nc1.kendall_tau is None:
        return "Whether the classes collapse with depth cannot be said: NC1 is undefined."
    last = next(layer for layer in reversed(collapsed.layers) if layer.stage is not None)
    trend = (
        "falls at every layer"
        if nc1.violations == 0
        else f"falls with depth but for {nc1.violations} layer{'s' * (nc1.violations != 1)}"
        if nc1.kendall_tau < 0
        else "does not fall with depth"
    )
    return (
        f"Within-class variability (NC1) {trend} (Kendall's tau {nc1.kendall_tau:+.2f}), "
        f"to {last.nc1:.3g} at the last layer."
    )


def _plain(value: Any) -> Any:
    """Numbers as JSON has them: NumPy's made Python's, NaN and infinity made null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | torch.Tensor):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, bool | int | float | str):
        return str(value) if isinstance(value, str) else value
    raise TypeError(f"a record cannot hold {type(value).__name__}")

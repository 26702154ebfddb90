"""A single analysis: its target and options, identified by the contents of its inputs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import ArgumentError
from ..runtime.processes import on_rank_zero
from .options import parse_solver

if TYPE_CHECKING:
    from ..analysis import Analysis
    from ..checkpoints import Network
    from ..data import Images

# Options that select the images (in their fingerprint), or do not affect results.
_OF_IMAGES = ("source", "split", "samples", "normalize", "image_size", "skip_broken", "seed")
_IRRELEVANT = (
    *("source", "split", "samples", "image_size", "skip_broken"),
    *("device", "batch_size", "trust_checkpoint", "memory"),
)
_TESTS = ("brenier", "alignment", "reference_networks")
_OF_NETWORKS = ("pool", "tap", "layers", *_TESTS, *_OF_IMAGES)
NETWORK_OPTIONS = tuple(  # as spelled on the command line
    name.replace("source", "data").replace("_", "-") for name in _OF_NETWORKS if name != "seed"
)


@dataclass(frozen=True, eq=False)
class Job:
    """A checkpoint, or a folder of stored features, and the options of `wgeo analyze`.

    Attributes
    ----------
    target : str
    options : mapping
        Values by parameter name of the command.
    explicit : frozenset of str
        The options that were given explicitly.
    """

    target: str
    options: Mapping[str, Any]
    explicit: frozenset[str] = frozenset()

    def check(self) -> None:
        """Raise an error for invalid options before anything is computed.

        Raises
        ------
        ArgumentError
            The solver is unknown; no images are given; options for networks are given for stored
            features.
        """
        parse_solver(self.options["solver"])
        if not self._stored and self.options["source"] is None:
            raise ArgumentError("No images are given: add --data; see `wgeo list datasets`.")
        given = [name for name in _OF_NETWORKS if name in self.explicit and name != "seed"]
        if self._stored and given:
            names = ", ".join("--" + name.replace("source", "data") for name in given)
            raise ArgumentError(
                f"{self.target} holds stored features: {names.replace('_', '-')} can only be given "
                "to `wgeo trace`."
            )

    @cached_property
    def key(self) -> str:
        """SHA-256 of everything that determines the numbers, by contents rather than paths."""
        from ..analysis.controls import REFERENCES
        from ..runtime.memory import memory_limit
        from ..storage.store import digest

        options = {name: v for name, v in self.options.items() if name not in _IRRELEVANT}
        reference = options["reference"]
        if reference not in REFERENCES:
            options["reference"] = _sha256(reference)
        images = None
        if not self._stored:
            with memory_limit(self.options.get("memory")):
                loaded = _images(self._of_images)
            # Without --normalize the preset decides how images are normalized.
            images = [on_rank_zero(lambda: loaded.fingerprint), loaded.preset]
        content = {"target": _sha256(self.target), "images": images, "wgeo": __version__}
        return digest({**content, "options": options})

    def measure(self, command: str, store: str | None = None) -> Analysis:
        """Run the analysis, storing features in `store`, and add the key to its provenance."""
        from ..runtime.memory import memory_limit

        with memory_limit(self.options.get("memory")):
            analysis = self._of_store(command) if self._stored else self._of_network(command, store)
        analysis.record["provenance"]["job"] = self.key
        return analysis

    @property
    def _stored(self) -> bool:
        from ..checkpoints.locating import is_saved_model

        return Path(self.target).is_dir() and not is_saved_model(self.target)

    @property
    def _of_images(self) -> tuple[Any, ...]:
        return tuple(self.options[name] for name in _OF_IMAGES)

    @property
    def _measuring(self) -> dict[str, Any]:
        names = ("embed", "bootstrap", "mufm", "seed")
        options = {name: self.options[name] for name in names}
        return {**options, "solver": parse_solver(self.options["solver"])}

    def _of_store(self, command: str) -> Analysis:
        from ..analysis import analyze_trajectory
        from ..analysis.controls import REFERENCES
        from ..trajectory import Trajectory

        reference: Any = self.options["reference"]
        if reference not in REFERENCES:
            reference = Trajectory.load(reference)
        traj = Trajectory.load(self.target)
        return analyze_trajectory(traj, reference=reference, command=command, **self._measuring)

    def _of_network(self, command: str, store: str | None) -> Analysis:
        from ..analysis import analyze
        from ..analysis.controls import REFERENCES

        options = self.options
        reference: Any = options["reference"]
        if reference not in REFERENCES:
            reference = self._network(reference)
        names = ("pool", "tap", *_TESTS, "device", "batch_size")
        return analyze(
            self._network(self.target),
            _images(self._of_images),
            reference=reference,
            layers=split_names(options["layers"]),
            store=store,
            command=command,
            **{name: options[name] for name in names},
            **self._measuring,
        )

    def _network(self, path: str) -> Network:
        from ..checkpoints import load_checkpoint

        names = ("arch", "num_classes", "trust_checkpoint", "prefix", "container")
        arch, num_classes, trust, prefix, container = map(self.options.get, names)
        return load_checkpoint(
            path, arch, num_classes, trust=bool(trust), prefix=prefix, container=container
        )


def require_inputs(checkpoints: Iterable[str], source: str | None) -> None:
    """Raise an error for paths that do not exist, before libraries are loaded (seconds).

    Raises
    ------
    CheckpointError, DataError
        There is no such checkpoint, or no such data set.
    """
    from ..checkpoints.locating import checked_path, display_path
    from ..data.names import locate

    for path in checkpoints:
        if not os.path.exists(path):
            checked_path(path, display_path(path))  # raises an error that says what is wrong
    if source is not None:
        locate(source)


def split_names(layers: str | None) -> list[str] | None:
    """Split ``"a, b"`` into ``["a", "b"]``."""
    return [name.strip() for name in layers.split(",")] if layers else None


@lru_cache(maxsize=1)
def _images(options: tuple[Any, ...]) -> Images:
    """Load the images that options select, and cache those of the last job."""
    from ..data import load_images

    selected = dict(zip(_OF_IMAGES, options, strict=True))
    return load_images(
        selected["source"],
        split=selected["split"],
        limit=selected["samples"] or None,
        seed=selected["seed"],
        normalize=selected["normalize"],
        size=selected["image_size"],
        skip_broken=selected["skip_broken"],
    )


@lru_cache
def _sha256(target: str) -> str:
    """Return the SHA-256 of a checkpoint, or of the manifest of stored features.

    The manifest holds the features' checksums, which `Trajectory.load` verifies.
    """
    from ..checkpoints.locating import is_saved_model
    from ..checkpoints.reading import fingerprint
    from ..storage.store import MANIFEST, manifest_of

    path = Path(target)
    if not path.is_dir() or is_saved_model(target):
        return fingerprint(target)
    manifest_of(path)
    with (path / MANIFEST).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

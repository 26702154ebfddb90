"""One analysis as plain values: what to measure and how, recognised by its content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
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
_NO_MATTER = (
    *("source", "split", "samples", "image_size", "skip_broken"),
    *("device", "batch_size", "trust_checkpoint", "memory"),
)
_OF_NETWORKS = ("pool", "tap", "layers", "brenier", "reference_networks", *_OF_IMAGES)
NETWORK_WORDS = tuple(  # as the command line has them
    name.replace("source", "data").replace("_", "-") for name in _OF_NETWORKS if name != "seed"
)


@dataclass(frozen=True, eq=False)
class Job:
    """A checkpoint, or a folder of stored features, and the options of `wgeo analyze`.

    Attributes
    ----------
    target : str
    options : mapping
        By the names of the command's parameters.
    asked : frozenset of str
        Which of them were given, rather than left as they are.
    """

    target: str
    options: Mapping[str, Any]
    asked: frozenset[str] = frozenset()

    def check(self) -> None:
        """Refuse options that make no sense before anything is computed.

        Raises
        ------
        ArgumentError
            An unknown solver; no images; options of a network, given for stored features.
        """
        parse_solver(self.options["solver"])
        if not self._stored and self.options["source"] is None:
            raise ArgumentError("Which images? Give --data; see `wgeo list datasets`.")
        given = [name for name in _OF_NETWORKS if name in self.asked and name != "seed"]
        if self._stored and given:
            names = ", ".join("--" + name.replace("source", "data") for name in given)
            raise ArgumentError(
                f"{self.target} holds features that are read already: {names.replace('_', '-')} "
                "can be said to `wgeo trace` alone."
            )

    @cached_property
    def key(self) -> str:
        """SHA-256 of everything that decides the numbers: contents rather than paths."""
        from ..analysis.controls import REFERENCES
        from ..runtime.memory import bounded
        from ..storage.store import digest

        options = {name: v for name, v in self.options.items() if name not in _NO_MATTER}
        reference = options["reference"]
        if reference not in REFERENCES:
            options["reference"] = _sha256(reference)
        images = None
        if not self._stored:
            with bounded(self.options.get("memory")):
                found = _images(self._of_images)
            # Without --normalize the preset decides how images are normalised.
            images = [on_rank_zero(lambda: found.fingerprint), found.preset]
        content = {"target": _sha256(self.target), "images": images, "wgeo": __version__}
        return digest({**content, "options": options})

    def measure(self, command: str, store: str | None = None) -> Analysis:
        """Do it, a network's features kept in `store`; the record's provenance holds the key."""
        from ..runtime.memory import bounded

        with bounded(self.options.get("memory")):
            found = self._of_store(command) if self._stored else self._of_network(command, store)
        found.record["provenance"]["job"] = self.key
        return found

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
        found = {name: self.options[name] for name in names}
        return {**found, "solver": parse_solver(self.options["solver"])}

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
        names = ("pool", "tap", "brenier", "reference_networks", "device", "batch_size")
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


def split_names(layers: str | None) -> list[str] | None:
    """``"a, b"`` -> ``["a", "b"]``."""
    return [name.strip() for name in layers.split(",")] if layers else None


@lru_cache(maxsize=1)
def _images(options: tuple[Any, ...]) -> Images:
    """The images that options name; those of the last job are still there."""
    from ..data import load_images

    said = dict(zip(_OF_IMAGES, options, strict=True))
    return load_images(
        said["source"],
        split=said["split"],
        limit=said["samples"] or None,
        seed=said["seed"],
        normalize=said["normalize"],
        size=said["image_size"],
        skip_broken=said["skip_broken"],
    )


@lru_cache
def _sha256(target: str) -> str:
    """Of a checkpoint, or of the manifest of stored features, which holds their checksums.

    The features are compared with those before they are analysed (`Trajectory.load`).
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

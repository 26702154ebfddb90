"""The settings of an analysis, and a key that identifies it.

`wgeo.analyze`, the command line and the configuration of a sweep all build an `AnalysisPlan`. Each
setting has the name of the Python parameter that it sets. No library is loaded before a plan is
built, so the command line shows the defaults at once.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import ArgumentError
from ..text import suggestion

if TYPE_CHECKING:
    from ..checkpoints import Network
    from ..data import Images
    from ..transport import Solver

REFERENCES = ("init", "shuffled", "none")
SOLVERS = {  # the `name` of each solver class in `wgeo.transport`, and a summary
    "exact": "W2 itself, with a certificate",
    "sinkhorn": "entropic, on the GPU if there is one; an interval that contains W2",
    "sliced": "mean over random directions; fast, an interval that contains W2",
    "gaussian": "Bures distance of the fitted Gaussians; a lower bound of W2",
}

Check = Callable[[Any, str], object]  # takes a value and its name; raises ArgumentError


def _setting(default: Any, check: Check, *, keyed: bool = True, network: bool = False) -> Any:
    """Declare a setting.

    Its value is checked unless it is the default, so that defaults load no library. A `keyed`
    setting is part of `AnalysisPlan.key`. The others do not affect the results, or only select the
    images, whose fingerprint is in the key. A `network` setting is refused for stored features.
    """
    return field(default=default, metadata={"check": check, "keyed": keyed, "network": network})


def _text(value: Any, name: str) -> None:
    if not isinstance(value, str):
        raise ArgumentError(f"`{name}=` must be text, not {value!r}.")


def _flag(value: Any, name: str) -> None:
    if not isinstance(value, bool):
        raise ArgumentError(f"`{name}=` must be True or False, not {value!r}.")


def _at_least(minimum: int) -> Check:
    def check(value: Any, name: str) -> None:
        from ..arrays.checks import as_count

        as_count(value, f"`{name}=`", minimum)

    return check


def _by(module: str, function: str) -> Check:
    """Return a check of text by a function of wgeo, which is imported when a value is checked."""

    def check(value: Any, name: str) -> None:
        _text(value, name)
        getattr(import_module(f"..{module}", __package__), function)(value)

    return check


def _layers(value: Any, name: str) -> None:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(each, str) for each in names):
        raise ArgumentError(f"`{name}=` must be names of modules, not {value!r}.")


def _reference(value: Any, _: str) -> None:
    if isinstance(value, str | os.PathLike) and (value in REFERENCES or os.path.exists(value)):
        return
    from torch import nn

    from ..checkpoints import Network
    from ..trajectory import Trajectory

    if not isinstance(value, Network | nn.Module | Trajectory):
        raise ArgumentError(
            f"Unknown reference {value!r}; choose {', '.join(REFERENCES)}, or give a network, or "
            "the path of a checkpoint."
        )


@dataclass(frozen=True)
class _Group:
    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.metadata and value is not each.default:
                each.metadata["check"](value, each.name)


@dataclass(frozen=True)
class Loading(_Group):
    """How a checkpoint is read: the parameters of `wgeo.load_checkpoint`."""

    arch: str | None = _setting(None, _text, network=True)
    num_classes: int | None = _setting(None, _at_least(1), network=True)
    prefix: str | None = _setting(None, _text, network=True)
    container: str | None = _setting(None, _text, network=True)
    trust: bool = _setting(False, _flag, keyed=False, network=True)

    def network(self, path: str | os.PathLike[str]) -> Network:
        from ..checkpoints import load_checkpoint

        return load_checkpoint(path, **vars(self))


@dataclass(frozen=True)
class Data(_Group):
    """The images: the parameters of `wgeo.load_images`; a `limit` of 0 selects all."""

    source: str | None = _setting(None, _text, keyed=False, network=True)
    split: str = _setting("train", _text, keyed=False, network=True)
    limit: int = _setting(2000, _at_least(0), keyed=False, network=True)
    normalize: str | None = _setting(None, _by("data.images", "normalization"), network=True)
    size: int | None = _setting(None, _at_least(1), keyed=False, network=True)
    skip_broken: bool = _setting(False, _flag, keyed=False, network=True)


@dataclass(frozen=True)
class Reading(_Group):
    """How features are read: parameters of `wgeo.trace`.

    `layers` may also be one text with commas between the names.
    """

    pool: str = _setting("gap", _by("features.recorder", "pooling"), network=True)
    tap: str = _setting("post", _by("features.tracing", "check_tap"), network=True)
    layers: str | Sequence[str] | None = _setting(None, _layers, network=True)
    device: str = _setting("auto", lambda *_: None, keyed=False)  # checked by `wgeo.trace`
    batch_size: int = _setting(256, _at_least(1), keyed=False)

    def parameters(self) -> dict[str, Any]:
        layers = self.layers
        if isinstance(layers, str):
            layers = [name.strip() for name in layers.split(",")] if layers else None
        return {**vars(self), "layers": layers}


@dataclass(frozen=True)
class Measuring(_Group):
    """What is measured; `solver` may also be a text such as ``sinkhorn:epsilon=0.01``."""

    solver: str | Solver = _setting("exact", lambda value, _: solver_of(value))  # noqa: RUF009
    bootstrap: int = _setting(200, _at_least(0))
    embed: str | None = _setting(None, _by("trajectory.views", "components"))
    mufm: bool | None = _setting(None, _flag)


@dataclass(frozen=True)
class Reference(_Group):
    """The reference for straightness: one of `REFERENCES`, a network, features, or their path."""

    reference: Any = _setting("init", _reference)  # noqa: RUF009
    reference_networks: int = _setting(20, _at_least(1), network=True)


@dataclass(frozen=True)
class JacobianTests(_Group):
    """Number of images for each test of Jacobians; None if it depends on the cost."""

    brenier: int | None = _setting(None, _at_least(0), network=True)
    alignment: int | None = _setting(None, _at_least(0), network=True)


@dataclass(frozen=True)
class AnalysisPlan(_Group):
    """All settings of an analysis; see `wgeo.analyze`.

    Raises
    ------
    ArgumentError
        A setting is invalid; the message names the Python parameter.
    """

    loading: Loading = Loading()
    data: Data = Data()
    reading: Reading = Reading()
    measuring: Measuring = Measuring()
    reference: Reference = Reference()
    tests: JacobianTests = JacobianTests()
    seed: int = _setting(0, _at_least(0))
    memory: str | None = _setting(None, _by("runtime.memory", "parse_bytes"), keyed=False)

    @classmethod
    def of(cls, **settings: Any) -> AnalysisPlan:
        """Build a plan from the given settings, and defaults for the others."""
        if unknown := sorted(settings.keys() - SETTINGS.keys()):
            raise ArgumentError(
                f"{unknown[0]!r} is not a setting of an analysis{suggestion(unknown[0], SETTINGS)}."
            )
        groups = {
            group.name: _chosen(type(group.default), settings)
            for group in fields(cls)
            if not group.metadata
        }
        return _chosen(cls, settings, **groups)

    def images(self) -> Images:
        """Return the images; those loaded last are cached."""
        return _images(self.data, self.seed)

    def key(self, target: str) -> str:
        """Return a hash (SHA-256) of everything that determines the results of an analysis.

        A finished analysis with the same key is not repeated, so a stopped sweep can resume. The
        key depends on wgeo's version; on the contents, not the paths, of the target, the images and
        a reference; and on the names and values of all other settings that affect results.
        ``Sinkhorn(epsilon=0.01)`` has the value ``sinkhorn:epsilon=0.01``, as on the command line.
        Within one version of wgeo, these names and values must not change, and no setting may be
        removed.

        `target` is the path of a checkpoint or of stored features.
        """
        from ..runtime.memory import memory_limit
        from ..runtime.processes import on_rank_zero
        from ..storage.store import digest

        images = None
        if not is_stored(target):
            with memory_limit(self.memory):
                loaded = self.images()
            # The preset can determine the normalization; the fingerprint does not include it.
            images = [on_rank_zero(lambda: loaded.fingerprint), loaded.preset]
        content = {"target": _sha256(target), "images": images, "wgeo": __version__}
        options = {
            name: value for name, value in self._settings() if SETTINGS[name].metadata["keyed"]
        }
        options["solver"] = _written(self.measuring.solver)
        if not isinstance(self.reading.layers, str | None):
            options["layers"] = ",".join(self.reading.layers)
        if self.reference.reference not in REFERENCES:
            options["reference"] = _sha256(self.reference.reference)
        return digest({**content, "options": options})

    def _settings(self) -> Iterator[tuple[str, Any]]:
        for name, value in vars(self).items():
            yield from vars(value).items() if isinstance(value, _Group) else [(name, value)]


def _chosen(kind: type[Any], settings: Mapping[str, Any], **groups: Any) -> Any:
    """Build a group, or the plan from `groups`, with the given settings that belong to it."""
    names = (each.name for each in fields(kind) if each.metadata)
    return kind(**groups, **{name: settings[name] for name in names if name in settings})


SETTINGS = {
    each.name: each
    for kind in (Loading, Data, Reading, Measuring, Reference, JacobianTests, AnalysisPlan)
    for each in fields(kind)
    if each.metadata
}
NETWORK_SETTINGS = tuple(name for name, each in SETTINGS.items() if each.metadata["network"])


def solver_of(solver: str | Solver) -> Solver:
    """Return the solver for a text such as ``sinkhorn:epsilon=0.01``.

    If `solver` is not a text, it is checked and returned.
    """
    from .. import transport
    from ..transport.entry import checked_solver

    if not isinstance(solver, str):
        return checked_solver(solver)
    name, _, options = solver.partition(":")
    if name not in SOLVERS:
        raise ArgumentError(f"Unknown solver {name!r}; choose {', '.join(SOLVERS)}.")
    classes = (getattr(transport, each) for each in transport.__all__)
    kind = next(each for each in classes if getattr(each, "name", None) == name)
    settings = settings_of(options.split(",") if options else ())
    names = [option.name for option in fields(kind)]
    if unknown := sorted(settings.keys() - set(names)):
        raise ArgumentError(
            f"`{solver=}`: {name} does not take {', '.join(unknown)}; its options are "
            f"{', '.join(names) or 'none'}."
        )
    try:
        return kind(**settings)  # type: ignore[no-any-return]
    except TypeError as error:
        raise ArgumentError(f"`{solver=}`: a value has the wrong type ({error}).") from error


def _written(solver: Any) -> str:
    """Return a solver as text: its name, and the options that are not the defaults."""
    if isinstance(solver, str):
        return solver
    values = [(each, getattr(solver, each.name)) for each in fields(solver)]
    options = ",".join(f"{each.name}={value}" for each, value in values if value != each.default)
    return f"{solver.name}:{options}" if options else str(solver.name)


def settings_of(texts: Iterable[str]) -> dict[str, Any]:
    """Parse ``("width=64", "mode=fast")`` as ``{"width": 64, "mode": "fast"}``."""
    settings = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise ArgumentError(f"{text!r} does not have the form name=value.")
        try:
            settings[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[key] = value
    return settings


def is_stored(target: str | os.PathLike[str]) -> bool:
    """Return whether a path is a folder of stored features: any folder but a saved model."""
    from ..checkpoints.locating import is_saved_model

    return Path(target).is_dir() and not is_saved_model(target)


@lru_cache(maxsize=1)
def _images(data: Data, seed: int) -> Images:
    from ..data import load_images

    return load_images(**vars(data) | {"limit": data.limit or None}, seed=seed)


def _sha256(target: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a checkpoint, or of the manifest of stored features.

    The manifest contains the checksums of the features, which `Trajectory.load` verifies. An
    unchanged file is read only once, since the jobs of a sweep may share a large reference.
    """
    from ..checkpoints.reading import fingerprint
    from ..storage.files import sha256_of
    from ..storage.store import MANIFEST, manifest_of

    path = Path(target)
    if is_stored(path):
        manifest_of(path)  # raises an error if the manifest is damaged
        return sha256_of(path / MANIFEST)
    if not path.is_file():
        return fingerprint(path)
    status = path.stat()
    return _file_sha256(path, status.st_mtime_ns, status.st_size, status.st_ino)


@lru_cache(maxsize=8)
def _file_sha256(path: Path, *_: int) -> str:
    from ..checkpoints.reading import fingerprint

    return fingerprint(path)

"""Animation of the features: the network compared with optimal transport."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib import animation
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..errors import ArgumentError, DependencyError, FeatureError, RecordError
from ..runtime.progress import track
from ..storage.files import temporary_path, writable
from ..trajectory import Trajectory, as_trajectory
from ..transport import Exact, Solver, wasserstein
from .sources import segment_at
from .style import CLASS_COLORS, MUTED, class_name, legend, new_figure, short, styled

_PCA_ROWS = 1000  # maximum number of points in the Gram matrix that determines the plane
_PAUSE = 0.6  # seconds without movement at the start and at the end
_WRITERS = {".gif": "pillow", ".mp4": "ffmpeg"}


@dataclass(frozen=True, eq=False)
class Scene:
    """Samples in the plane of a segment's first two principal components, at any time t in [0, 1].

    The time t is a fraction of the path's length; the network reaches layer l at ``times[l]``. The
    optimal coupling moves sample i to the last layer's features of sample ``target[i]``.
    """

    names: tuple[str, ...]
    times: Float[np.ndarray, " L1"]
    layers: Float[np.ndarray, "L1 n 2"]
    target: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]

    def network(self, t: float) -> Float[np.ndarray, "n 2"]:
        """Return the samples at time t on the network's path, interpolated between layers."""
        block = self._block(t)
        start, end = self.times[block], self.times[block + 1]
        s = (t - start) / (end - start) if end > start else 1.0
        return (1 - s) * self.layers[block] + s * self.layers[block + 1]

    def geodesic(self, t: float) -> Float[np.ndarray, "n 2"]:
        """Return the samples at time t of the displacement interpolation (McCann 1997)."""
        return (1 - t) * self.layers[0] + t * self.layers[-1][self.target]

    def position(self, t: float) -> str:
        """Return the name of the layer at time t, or of the layers before and after t."""
        nearest = int(np.abs(self.times - t).argmin())
        if abs(self.times[nearest] - t) < 1e-9:
            return short(self.names[nearest], 30)
        block = self._block(t)
        return f"{short(self.names[block], 24)} → {short(self.names[block + 1], 24)}"

    def _block(self, t: float) -> int:
        return int(np.clip(np.searchsorted(self.times, t, "right") - 1, 0, len(self.times) - 2))


def scene(
    traj: Trajectory,
    *,
    segment: int = -1,
    samples: int = 400,
    solver: Solver | None = None,
    seed: int = 0,
) -> Scene:
    """Return the scene of a segment; parameters and errors are those of `flow`."""
    traj = as_trajectory(traj)
    source = segment_at(traj.segments, segment, "trajectory")
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(traj))[: max(2, samples)])
    arrays = [np.asarray(array[rows], dtype=np.float64) for array in source.arrays]
    solver = Exact() if solver is None else solver
    steps = [
        wasserstein(x, y, solver=solver, coupling=np.arange(len(rows))).distance
        for x, y in track(list(pairwise(arrays)), "optimal transport")
    ]
    target = wasserstein(arrays[0], arrays[-1], solver=solver).coupling
    if not (isinstance(target, np.ndarray) and target.ndim == 1):
        raise ArgumentError("flow needs a solver that pairs samples one to one, such as Exact().")
    length = sum(steps)
    if length == 0:
        raise FeatureError(f"Nothing moves from {source.names[0]} to {source.names[-1]}.")
    times = np.cumsum([0.0, *steps]) / length
    return Scene(source.names, times, _in_plane(arrays, rng), target, traj.labels[rows])


def _in_plane(
    arrays: list[Float[np.ndarray, "n d"]], rng: np.random.Generator
) -> Float[np.ndarray, "L1 n 2"]:
    points = np.concatenate(arrays)
    center = points.mean(0)
    subset = points[rng.permutation(len(points))[:_PCA_ROWS]] - center
    vectors = np.linalg.eigh(subset @ subset.T)[1]
    axes = subset.T @ vectors[:, :-3:-1]  # the first two principal directions, d x 2
    axes /= np.maximum(np.linalg.norm(axes, axis=0), np.finfo(float).tiny)
    return np.stack([(array - center) @ axes for array in arrays])


@styled
def flow(
    traj: Trajectory,
    path: str | os.PathLike[str],
    *,
    segment: int = -1,
    samples: int = 400,
    seconds: float = 6.0,
    fps: int = 20,
    solver: Solver | None = None,
    seed: int = 0,
) -> Path:
    """Write an animation of a segment's features, next to the geodesic between its ends.

    On the left, samples move as in the network, in straight lines from layer to layer. On the
    right, they follow the displacement interpolation from the first layer to the last. Both panels
    show the plane of the first two principal components, at the same fraction of the path's length.
    The distributions agree at all times if the network follows a geodesic.

    Parameters
    ----------
    traj : Trajectory
    path : path
        ``.gif`` (written by pillow), or ``.mp4`` (needs ffmpeg).
    segment : int
        Index of the segment; by default the last, which ends at the output of the last block.
    samples : int
        Number of random samples, for which the transport is solved; at least two are used.
    seconds, fps
        Duration of the movement in seconds, > 0, and frames per second, >= 1.
    solver : solver, optional
        A solver that pairs samples one to one; by default `Exact()`.
    seed : int
        Random seed of the samples.

    Returns
    -------
    Path

    Raises
    ------
    ArgumentError
        The file extension is not supported, `seconds` or `fps` is out of range, the segment does
        not exist, or the solver does not pair samples one to one.
    DependencyError
        ffmpeg, which ``.mp4`` needs, is not installed.
    FeatureError
        The segment's features do not move.
    RecordError
        The file cannot be written, or ffmpeg fails; an existing file is unchanged.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(12, 2))
    >>> traj = wgeo.Trajectory.from_arrays([x, x + [1, 0], x + [1, 1]], np.arange(12) % 2)
    >>> wgeo.plots.flow(traj, "flow.gif", seconds=0.2, fps=5).name
    'flow.gif'
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITERS:
        raise ArgumentError(f"flow writes .gif or .mp4, not {path.suffix or path.name}.")
    name = _WRITERS[path.suffix.lower()]
    if not animation.writers.is_available(name):
        raise DependencyError(f"Writing {path.suffix} needs {name}; install it, or write a .gif.")
    if seconds <= 0 or fps < 1:
        raise ArgumentError(f"flow needs seconds > 0 and fps >= 1, not {seconds} and {fps}.")
    shown = scene(traj, segment=segment, samples=samples, solver=solver, seed=seed)
    writable(path.parent)
    figure = new_figure(7.2, 3.9)
    axes = figure.subplots(1, 2)
    colors = [CLASS_COLORS[k % len(CLASS_COLORS)] for k in shown.labels]
    clouds = [_scatter(ax, shown, colors) for ax in axes]
    axes[0].set_title("The network")
    axes[1].set_title("The geodesic between its ends")
    subtitle = figure.suptitle(shown.position(0.0), fontsize=8.5, color=MUTED)
    _class_legend(figure, traj, shown)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the same layout for every frame
    moving = np.linspace(0, 1, max(2, round(seconds * fps)))
    pause = round(_PAUSE * fps)
    times = [*[0.0] * pause, *moving, *[1.0] * pause]

    def draw(t: float) -> None:
        clouds[0].set_offsets(shown.network(t))
        clouds[1].set_offsets(shown.geodesic(t))
        subtitle.set_text(shown.position(t))

    _write(path, animation.writers[name](fps=fps), figure, track(times, "drawing frames"), draw)
    return path


def _write(
    path: Path,
    writer: animation.AbstractMovieWriter,
    figure: Figure,
    times: Iterable[float],
    draw: Callable[[float], None],
) -> None:
    """Write a frame at every time; on failure, an existing file is unchanged."""
    temporary = temporary_path(path).with_suffix(path.suffix)  # the extension determines the format
    try:
        writer.setup(figure, str(temporary), dpi=100)
        try:
            for t in times:
                draw(t)
                writer.grab_frame()
        except BrokenPipeError:  # ffmpeg has stopped; `finish` raises its error
            writer.finish()
            raise
        except BaseException:
            with suppress(Exception):  # ends ffmpeg, whose output is discarded
                writer.finish()
            raise
        writer.finish()
        temporary.replace(path)
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.splitlines()[-1:]) or f"exit status {error.returncode}"
        raise RecordError(
            f"ffmpeg could not write {path}: {reason.rstrip('.')}. Write a .gif instead. If "
            "this ffmpeg lacks H.264, you can also use another one."
        ) from error
    except OSError as error:
        raise RecordError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _scatter(ax: Axes, shown: Scene, colors: list[str]) -> Any:
    low, high = shown.layers.min((0, 1)), shown.layers.max((0, 1))
    margin = 0.06 * float((high - low).max())
    ax.set(xlim=(low[0] - margin, high[0] + margin), ylim=(low[1] - margin, high[1] + margin))
    ax.set_aspect("equal")
    ax.set(xticks=[], yticks=[])
    x, y = shown.layers[0].T
    return ax.scatter(x, y, s=9, c=colors, alpha=0.75, lw=0)


def _class_legend(figure: Figure, traj: Trajectory, shown: Scene) -> None:
    present = np.unique(shown.labels)
    if len(present) > 20:
        return
    names = [class_name(traj.class_names, k, 14) for k in present]
    dot: dict[str, Any] = {"marker": "o", "ms": 4, "ls": "none"}
    handles = [Line2D([], [], color=CLASS_COLORS[k % len(CLASS_COLORS)], **dot) for k in present]
    options: dict[str, Any] = {"loc": "outside lower center", "ncols": 10, "labelcolor": MUTED}
    legend(figure, handles, names, handletextpad=0.1, columnspacing=0.9, fontsize=7, **options)

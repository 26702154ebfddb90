"""The entry: collapse of a trajectory, or of a stream of batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..arrays.checks import as_count
from ..errors import ArgumentError
from ..trajectory import Trajectory
from .measure import collapse_of_trajectory
from .metrics import RANK_TOLERANCE
from .result import Collapse
from .spectrum import SPECTRUM_SIZE
from .streaming import collapse_stream


def collapse(
    source: Any,
    *,
    weights: str = "uniform",
    ood: Trajectory | Mapping[str, Any] | None = None,
    rank_tolerance: float = RANK_TOLERANCE,
    spectrum_size: int = SPECTRUM_SIZE,
    bootstrap: int = 0,
    seed: int = 0,
    **stream: Any,
) -> Collapse:
    """Measure neural collapse at every layer, and whether it progresses with depth.

    Definitions are in `LayerCollapse` and `Progress`. No d x d matrix is formed for wide layers:
    NC1 only sees the span of the K class means, at a cost of O(N d K) (d features, N samples).
    All arithmetic is float64, about one of the samples, so no digits are lost to an offset.

    Parameters
    ----------
    source : Trajectory, or batches
        Batches are as `collapse_stream` takes them, such as ``lambda: wgeo.stream(net, images)``:
        then memory does not grow with the number of samples.
    weights : {"uniform", "frequency"}
        Whether the classes count alike in the global mean and Sigma_B, or by their size.
    ood : Trajectory or mapping of layer name to features, optional
        Out-of-distribution samples through the same network, for NC5.
    rank_tolerance : float
        Directions of the class means below this share of the largest count as none, and so do
        those that the rounding of the features' own type can make.
    spectrum_size : int
        The ranks are exact where samples or width are at most this many, and otherwise of a sample
        of so many rows chosen by their content; 0 leaves the ranks out.
    bootstrap : int
        Number of resamplings (within each class) for the intervals of Kendall's tau, measured all
        together; 0 for none. Of a trajectory only: a stream cannot be drawn from again.
    seed : int
        Of the bootstrap.
    **stream
        Of batches, what else `CollapseStream` takes: classifier, num_classes, stages, keep.

    Raises
    ------
    FeatureError
        One class only, NaN or infinity (layer and sample are named), or two passes over a stream
        that differ.
    ArgumentError
        A label that the classifier has no row for, unknown `weights`, or an option that does not
        go with the source.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> labels = np.arange(60) % 3
    >>> noise = np.random.default_rng(0).normal(size=(60, 4))
    >>> layers = [np.eye(3, 4)[labels] + spread * noise for spread in (1.0, 0.3, 0.1)]
    >>> found = wgeo.collapse(wgeo.Trajectory.from_arrays(layers, labels))
    >>> found.progress["nc1"].monotone
    True
    """
    bootstrap, seed = as_count(bootstrap, "bootstrap"), as_count(seed, "seed")
    if isinstance(source, Trajectory):
        if stream:
            raise ArgumentError(f"{', '.join(stream)}: options of a stream, not of a Trajectory.")
        return collapse_of_trajectory(
            source,
            weights=weights,
            ood=ood,
            rank_tolerance=rank_tolerance,
            spectrum_size=spectrum_size,
            bootstrap=bootstrap,
            seed=seed,
        )
    if not (callable(source) or isinstance(source, Iterable)) or isinstance(source, nn.Module):
        raise ArgumentError(
            "collapse takes a Trajectory, wgeo.trace(net, images), or batches, "
            f"lambda: wgeo.stream(net, images); not {type(source).__name__}."
        )
    if bootstrap:
        raise ArgumentError("A stream cannot be resampled; trace the network for intervals.")
    return collapse_stream(
        source,
        weights=weights,
        ood=ood,
        rank_tolerance=rank_tolerance,
        spectrum_size=spectrum_size,
        **stream,
    )

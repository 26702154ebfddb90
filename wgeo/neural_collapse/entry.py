"""`collapse`, the entry point for trajectories and streams of batches."""

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
    NC1 depends only on the span of the K class means, and costs O(N d K) for N samples of d
    features. All arithmetic is in float64, relative to one of the samples, so that an offset causes
    no loss of precision.

    Parameters
    ----------
    source : Trajectory, or batches
        Batches are those of `collapse_stream`, for example ``lambda: wgeo.stream(net, images)``.
        With batches, memory does not grow with the number of samples.
    weights : {"uniform", "frequency"}
        Whether classes have equal weights in the global mean and in Sigma_B, or weights
        proportional to their size.
    ood : Trajectory or mapping of layer name to features, optional
        Out-of-distribution samples, traced through the same network, for NC5.
    rank_tolerance : float
        Directions of the class means with a singular value below this fraction of the largest are
        ignored, and so are directions that rounding in the features' dtype can cause.
    spectrum_size : int
        The ranks are exact if the number of samples or the width is at most this. Otherwise they
        are computed from a sample of this many rows, chosen by their content. 0 omits the ranks.
    bootstrap : int
        Number of resamples (within each class) for the intervals; 0 for none. This is only for a
        trajectory, because a stream cannot be resampled.
    seed : int
        Random seed of the bootstrap.
    **stream
        More options of `CollapseStream`, only for batches: classifier, num_classes, stages, keep.

    Raises
    ------
    FeatureError
        There is only one class, there is NaN or infinity (the message names the layer and the
        sample), or the two passes over a stream differ.
    ArgumentError
        A label without a row in the classifier, unknown `weights`, or an option that does not
        apply to the source.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> labels = np.arange(60) % 3
    >>> noise = np.random.default_rng(0).normal(size=(60, 4))
    >>> layers = [np.eye(3, 4)[labels] + scale * noise for scale in (1.0, 0.3, 0.1)]
    >>> result = wgeo.collapse(wgeo.Trajectory.from_arrays(layers, labels))
    >>> result.progress["nc1"].monotone
    True
    """
    bootstrap, seed = as_count(bootstrap, "bootstrap"), as_count(seed, "seed")
    if isinstance(source, Trajectory):
        if stream:
            raise ArgumentError(
                f"{', '.join(stream)}: options of a stream, not of a Trajectory. Omit them."
            )
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

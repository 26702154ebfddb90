"""`collapse`, for trajectories and streams of batches, and `separation_law`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from ..arrays.checks import as_count
from ..errors import ArgumentError
from ..trajectory import Trajectory
from .measure import collapse_of_trajectory
from .metrics import RANK_TOLERANCE
from .result import Collapse
from .separation import SeparationLaw, law_of_layers, select_layers
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
    weights : {"uniform", "frequency", "sample_mean"}
        How classes of unequal sizes count. ``"uniform"``: equally, in the global mean g and in
        Sigma_B. ``"frequency"``: in proportion to their sizes N_k, in both, so that Sigma_W +
        Sigma_B is the covariance of the samples. ``"sample_mean"``: g is the mean of all samples,
        and classes count equally in Sigma_B = (1/K) sum (m_k - g)(m_k - g)^T, as in the published
        scripts of Zhu et al. (2021, arXiv:2105.02375) and Zhou et al. (2022, arXiv:2203.01238).
        Sigma_W is the mean over all samples in each case. If all classes have the same size, the
        three are equal.
    ood : Trajectory or mapping of layer name to features, optional
        Out-of-distribution samples, traced through the same network, for NC5.
    rank_tolerance : float
        NC1 ignores directions of the class means with a singular value below this fraction of the
        largest, and directions that rounding in the features' dtype can cause.
    spectrum_size : int
        The ranks are exact if the number of samples or the width is at most this. Otherwise they
        are computed from this many samples, chosen by a hash of their features. 0 omits the ranks.
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
        A label has no row in the classifier, `weights` is unknown, an option does not apply to the
        source, or the source is neither a `Trajectory` nor batches.

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


def separation_law(
    source: Any,
    *,
    layers: Sequence[str] | None = None,
    bootstrap: int = 0,
    seed: int = 0,
) -> SeparationLaw:
    """Measure whether the classes separate by the same factor at every layer.

    With Sigma_W and Sigma_B the within- and between-class covariances at layer l,

        D_l = tr(Sigma_W pinv(Sigma_B)) = K nc1,    D_l ~ rho^l D_0

    is the law of data separation (He and Su 2023, PNAS 120(36), arXiv:2210.17020), which the
    authors found at the end of training, on training images. Classes are weighted as in the
    `Collapse` (the paper's choice for unequal classes is ``weights="frequency"``). A geodesic run
    at constant speed does not follow the law: see ``curvature`` of `SegmentLaw`. Also measured are
    compression and discrimination (Wang, Li, Yaras, Zhu, Balzano, Hu and Qu 2025, JMLR,
    arXiv:2311.02960).

    Parameters
    ----------
    source : Collapse or Trajectory
        A `Collapse` measured with ``bootstrap`` already has the intervals of the law, but only for
        all layers.
    layers : sequence of str, optional
        The layers to fit, always in execution order. By default all layers from the input of the
        first block to the output of the last.
    bootstrap : int
        Number of resamples (within each class) for the intervals, for a `Trajectory`.
    seed : int
        Random seed of the bootstrap.

    Raises
    ------
    ArgumentError
        `source` is neither a `Collapse` nor a `Trajectory`, a layer is unknown, or `bootstrap` is
        given for a `Collapse`, which has no samples.
    FeatureError
        As in `collapse`, for a `Trajectory`.

    Examples
    --------
    Every layer multiplies the distances to the class means by 0.8, and therefore D by 0.64:

    >>> import numpy as np
    >>> import wgeo
    >>> labels = np.arange(60) % 3
    >>> noise = np.random.default_rng(0).normal(size=(60, 4))
    >>> noise -= np.stack([noise[labels == k].mean(0) for k in range(3)])[labels]
    >>> layers = [np.eye(3, 4)[labels] + 0.8**l * noise for l in range(6)]
    >>> law = wgeo.separation_law(wgeo.Trajectory.from_arrays(layers, labels)).segments[0]
    >>> print(f"{law.rate:.3f} {law.correlation:.3f} {abs(law.curvature):.3f}")
    0.640 -1.000 0.000
    """
    if isinstance(source, Trajectory):
        if layers is not None:
            chosen = select_layers(source.staged, layers)
            source = replace(source, layers=tuple(chosen))
        return collapse(source, spectrum_size=0, bootstrap=bootstrap, seed=seed).separation_law
    if not isinstance(source, Collapse):
        raise ArgumentError(
            "separation_law takes a Collapse, wgeo.collapse(trajectory), or a Trajectory; not "
            f"{type(source).__name__}."
        )
    if bootstrap:
        raise ArgumentError(
            "A Collapse cannot be resampled; pass the trajectory, or a Collapse that "
            "`wgeo.collapse` measured with `bootstrap=`."
        )
    if layers is None:
        return source.separation_law
    return law_of_layers(
        select_layers([each for each in source.layers if each.stage is not None], layers)
    )

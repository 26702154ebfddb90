"""`collapse`, for trajectories and streams, `collapse_of` for one layer, and `separation_law`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..arrays.checks import as_count, as_labels, check_plain
from ..errors import ArgumentError
from ..runtime.progress import track
from ..trajectory import Classifier, Trajectory
from .bootstrap import with_intervals
from .depth import Collapse, SeparationLaw, law_of_layers
from .measure import LayerPasses, OodMeans, classifier_matrix
from .metrics import RANK_TOLERANCE, Frame, LayerCollapse, check_rank_tolerance
from .moments import SPECTRUM_SIZE, ClassIndex, check_weights
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

    `LayerCollapse` and `Progress` define the metrics. No d x d matrix is formed for wide layers:
    NC1 depends only on the span of the K class means, and takes O(N d K) operations for N samples
    of d features. All arithmetic is in float64, relative to one of the samples, so that an offset
    of the features costs no precision.

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
    rank_tolerance : float in [0, 1)
        NC1 ignores directions of the class means with a singular value below this fraction of the
        largest, and directions that rounding in the features' dtype can cause.
    spectrum_size : int
        The ranks are exact if the number of samples or the width is at most this. Otherwise they
        are computed from this many samples, chosen by a hash of their features. 0 omits the ranks.
    bootstrap : int
        Number of resamples (within each class) for 95 % intervals; 0 for no intervals. Only for a
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
    options: dict[str, Any] = {
        "weights": weights,
        "ood": ood,
        "rank_tolerance": rank_tolerance,
        "spectrum_size": spectrum_size,
    }
    if isinstance(source, Trajectory):
        if stream:
            raise ArgumentError(
                f"{', '.join(stream)}: options of a stream, not of a Trajectory. Omit them."
            )
        return _collapse_of_trajectory(source, bootstrap=bootstrap, seed=seed, **options)
    is_network = isinstance(source, torch.nn.Module)
    if is_network or not (callable(source) or isinstance(source, Iterable)):
        raise ArgumentError(
            "collapse takes a Trajectory, wgeo.trace(net, images), or batches, "
            f"lambda: wgeo.stream(net, images); not {type(source).__name__}."
        )
    if bootstrap:
        raise ArgumentError("A stream cannot be resampled; trace the network for intervals.")
    return collapse_stream(source, **options, **stream)


def _collapse_of_trajectory(
    traj: Trajectory,
    *,
    weights: str,
    ood: Trajectory | Mapping[str, Any] | None,
    rank_tolerance: float,
    spectrum_size: int,
    bootstrap: int,
    seed: int,
) -> Collapse:
    check_weights(weights)
    rank_tolerance = check_rank_tolerance(rank_tolerance)
    classifier = None if traj.classifier is None else classifier_matrix(traj.classifier)
    index = ClassIndex(len(traj.class_names) or None if classifier is None else len(classifier))
    class_index = index.add(traj.labels)
    predicted = None if traj.predictions is None else index.indices(traj.predictions)
    last = traj.layers[-1]
    if classifier is not None and classifier.shape[1] != last.width:
        classifier = None  # its input is not the last layer
    ood_means = OodMeans(ood)
    if ood is not None:  # raise before any pass if a layer is missing
        for layer in traj.layers:
            ood_means.mean(layer.name, layer.width)
    layers = [
        LayerPasses(layer.name, index, weights, spectrum_size)
        .over(layer.features, class_index, predicted)
        .metrics(
            stage=layer.stage,
            classifier=classifier if layer is last else None,
            ood=ood_means,
            rank_tolerance=rank_tolerance,
        )
        for layer in track(traj.layers, "measuring collapse")
    ]
    result = Collapse.of_layers(
        layers,
        classes=tuple(index.classes.tolist()),
        counts=tuple(np.bincount(class_index).tolist()),
        weights=weights,
        classifier=None if classifier is None else Frame.of(classifier),
        accuracy=traj.accuracy,
    )
    if not bootstrap:
        return result
    return with_intervals(
        result,
        traj.staged,
        class_index,
        predicted,
        resamples=bootstrap,
        seed=seed,
        rank_tolerance=rank_tolerance,
    )


def collapse_of(
    features: Any,
    labels: Any,
    classifier: Classifier | Any = None,
    predictions: Any = None,
    *,
    weights: str = "uniform",
    name: str = "features",
    stage: int | None = 0,
    ood: Any = None,
    rank_tolerance: float = RANK_TOLERANCE,
    spectrum_size: int = SPECTRUM_SIZE,
) -> LayerCollapse:
    """Measure the collapse of one set of features; see `collapse`.

    Parameters
    ----------
    features : array_like, (n, d)
        Rows are samples, so this is the transpose of H in the papers.
    labels : array_like of int, (n,)
    classifier : Classifier or array_like, (K, d), optional
        Weights of the classifier, for NC3.
    predictions : array_like of int, (n,), optional
        The network's predictions, to compare with the nearest class mean (NC4).
    weights, ood, rank_tolerance, spectrum_size
        See `collapse`; `ood` is an array here.
    name, stage
        Name and stage of the layer.

    Raises
    ------
    FeatureError, ArgumentError
        As in `collapse`; also if the widths of the classifier and the features differ.

    Examples
    --------
    Classes that have collapsed onto the vertices of a simplex:

    >>> import numpy as np
    >>> import wgeo
    >>> labels = np.arange(30) % 3
    >>> layer = wgeo.neural_collapse.collapse_of(np.eye(3)[labels], labels, classifier=np.eye(3))
    >>> [round(value, 6) for value in (layer.nc1, layer.nc2_etf, layer.nc3, layer.ncc_accuracy)]
    [0.0, 0.0, 0.0, 1.0]
    """
    if isinstance(features, torch.Tensor):
        check_plain(features, f"layer {name!r}")
    y = as_labels(labels, len(features))
    weight = None if classifier is None else classifier_matrix(classifier)
    index = ClassIndex(None if weight is None else len(weight))
    class_index = index.add(y)
    predicted = None if predictions is None else index.indices(as_labels(predictions, len(y)))
    passes = LayerPasses(name, index, check_weights(weights), spectrum_size)
    return passes.over(features, class_index, predicted).metrics(
        stage=stage,
        classifier=weight,
        ood=OodMeans(None if ood is None else {name: ood}),
        rank_tolerance=check_rank_tolerance(rank_tolerance),
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
    `Collapse`; for a `Trajectory`, the weights are uniform. For unequal classes, the paper's choice
    is ``weights="frequency"``. A path along a geodesic at constant speed does not follow the law:
    see ``curvature`` of `SegmentLaw`. The result also contains compression and discrimination
    (Wang, Li, Yaras, Zhu, Balzano, Hu and Qu 2025, JMLR, arXiv:2311.02960).

    Parameters
    ----------
    source : Collapse or Trajectory
        A `Collapse` measured with ``bootstrap`` already has the intervals of the law for all
        layers, but not for chosen ones.
    layers : sequence of str, optional
        The layers to fit, always in execution order. By default all layers from the input of the
        first block to the output of the last.
    bootstrap : int
        Number of resamples (within each class) for 95 % intervals; only for a `Trajectory`.
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
            chosen = _select_layers(source.staged, layers)
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
    staged = [layer for layer in source.layers if layer.stage is not None]
    return law_of_layers(_select_layers(staged, layers))


def _select_layers(layers: Sequence[Any], selected: Iterable[str]) -> list[Any]:
    """Return the layers with these names, in execution order."""
    if isinstance(selected, str):
        raise ArgumentError("layers must be a list of layer names, not a string.")
    names = set(selected)
    if not names:
        raise ArgumentError("layers is empty; name at least three layers to fit.")
    unknown = names - {layer.name for layer in layers}
    if unknown:
        raise ArgumentError(
            f"no layer {', '.join(sorted(map(repr, unknown)))}; choose from these: "
            f"{', '.join(layer.name for layer in layers)}."
        )
    return [layer for layer in layers if layer.name in names]

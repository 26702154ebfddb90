"""Compare a network with theoretical models, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import numpy as np
from jaxtyping import Float, Int

from ..arrays.rows import as_float64, materialize
from ..errors import ArgumentError, ConvergenceError, FeatureError
from ..neural_collapse import collapse_of
from ..runtime.memory import available_bytes, total_memory
from ..runtime.processes import on_rank_zero
from ..runtime.progress import track
from ..text import counted
from ..trajectory import Segment, Trajectory, as_trajectory
from ..transport import Exact, wasserstein
from ..ufm.mufm.solution import MUFMSolution
from .fitting import MUFMFit, expected_seconds
from .predictions import (
    MAX_DIRECTIONS,
    Errors,
    Prediction,
    StraightPath,
    layer_times,
    path_predictions,
    relative_gain,
    simplex_etf_prediction,
)
from .result import Comparison, ModelLayer

W2_SAMPLES = 300  # about the number of samples for W2; enough for two digits
# Largest number of matrices of shape (features, `MAX_DIRECTIONS`) in memory at once; measured: 17
# to 19.
_ROTATION_MATRICES = 20
# The same for the further matrices of a fit, of shape (features, min(samples, features)); measured:
# 5 to 7.
_FIT_MATRICES = 8
# Largest relative difference between a model's X and the first layer of the segment. It is not zero
# because features may be stored in half precision.
_INPUT_TOLERANCE = 1e-2
DEFAULT_SECONDS = 60.0  # on one core; with mufm=None, MUFM is fitted if expected to take no longer


def compare(
    traj: Trajectory,
    model: MUFMSolution | None = None,
    *,
    mufm: bool | None = True,
    time: str = "nearest",
    seed: int = 0,
) -> Comparison:
    r"""Compare the layers of a trained network with the predictions of theoretical models.

    In all models except the plain UFM, features move on straight lines. The models use different
    parts of the network:

    - The *geodesic model* uses the first and last layer. It describes a network whose layers lie on
      a Wasserstein geodesic, provided that the network's pairing of the first and last layer is an
      optimal coupling (Wang, Gai, Zhang 2024, arXiv 2405.00985).
    - *MUFM* uses the first layer, the labels and two numbers, the transport strength and the weight
      decay of its classifier W. The numbers are those for which MUFM, with W fitted to one half of
      the samples (squared loss, free bias), best predicts the last layer of the other half. (The
      network's own weight decay does not determine that of W, because it applies to all layers.) In
      a wide network many W are equivalent, so MUFM does not determine the directions of the
      features and is compared up to a rotation of every layer.
    - *MUFM with the network's own classifier* uses the first layer, the labels and the directions
      of the classifier instead of an optimal W. The size of W and the transport strength are chosen
      to predict all layers best. No rotation is fitted.
    - The *plain UFM* uses the class means of the last layer. It predicts that this layer has
      collapsed onto a simplex ETF, whose rotation and size are fitted.

    The prediction of layer l is :math:`\bar h_l + g_l ((1 - t_l) X + t_l H) Q_l`. X and H are the
    centered features at the two ends of the model's path (rows are samples). The parameters are

    - the mean :math:`\bar h_l` of the layer, because MUFM with a free bias commutes with
      translations of its features, and a translation of all samples contains no information about
      classes;
    - a scale :math:`g_l`, fitted by least squares, because the network's scale is determined by one
      normalization layer and removed by the next;
    - the time :math:`t_l` of an inner layer, because a separate transport strength for every step
      of MUFM leaves its paths straight, and changes only the times at which they pass the layers;
    - a rotation or reflection :math:`Q_l` for MUFM (orthogonal Procrustes), and the identity for
      the geodesic model and for MUFM with the network's own classifier.

    The baseline is the first layer with the same degrees of freedom, :math:`\bar h_l + g_l X Q_l`.
    The ``r2`` of the baseline is 0, and that of a perfect prediction is 1. Of these parameters,
    only the times affect the collapse metrics of a prediction. For a stored trajectory, the
    features of the models are stored on disk too, in temporary files.

    Parameters
    ----------
    traj : Trajectory
    model : MUFMSolution, optional
        A solution for the first layer of the last segment (``fit_mufm(traj.segments[-1].arrays[0],
        traj.labels, layers=...)``), to compare instead of MUFM with fitted settings.
    mufm : bool or None
        Whether to fit MUFM if no `model` is given. None: only if the trajectory has a classifier or
        predictions, and the fit is expected to take at most a minute on one core. If MUFM was not
        fitted, for example for lack of memory, the result's ``skipped`` says why.
    time : {"nearest", "length", "uniform"}
        The times :math:`t_l` of inner layers, in [0, 1]. ``nearest``: the time at which the model's
        path is nearest to the layer, whatever its speed. ``length``: the sum of the root mean
        squared steps up to the layer, divided by the sum of all steps. ``uniform``: l / L, constant
        speed over the layers.
    seed : int
        Random seed of the halves and of the samples for W2: about 300 / K of each of the K classes,
        or all of a smaller class.

    Raises
    ------
    ArgumentError
        The numbers of layers, samples or features of `model` differ from those of the segment,
        `model` was fitted to other inputs, `time` is unknown, or a label is not a class of the
        network's classifier.
    FeatureError
        All samples are of one class, or `model` needs too much memory.

    Examples
    --------
    Samples that move in straight lines are predicted without error by the geodesic model:

    >>> import numpy as np
    >>> import wgeo
    >>> labels, noise = np.arange(60) % 3, np.random.default_rng(0).normal(size=(60, 4))
    >>> layers = [np.eye(3, 4)[labels] + scale * noise for scale in (0.3, 0.2, 0.1)]
    >>> result = wgeo.compare(wgeo.Trajectory.from_arrays(layers, labels), mufm=False)
    >>> [(layer.name, round(layer.time, 6), round(layer.missed, 6)) for layer in result.geodesic]
    [('layer0', 0.0, 0.0), ('layer1', 0.5, 0.0), ('layer2', 1.0, 0.0)]
    """
    comparison = model_predictions(traj, model, mufm=mufm, time=time, seed=seed)
    network = [
        collapse_of(array, traj.labels, name=name, stage=segment.stage)
        for segment in traj.segments
        for name, array in zip(segment.names, segment.arrays, strict=True)
    ]
    return replace(comparison, network=tuple(network))


def model_predictions(
    traj: Trajectory,
    model: MUFMSolution | None = None,
    *,
    mufm: bool | None = True,
    time: str = "nearest",
    seed: int = 0,
) -> Comparison:
    """Return the result of `compare` without the collapse metrics of the network."""
    traj = as_trajectory(traj)
    classes, labels = np.unique(traj.labels, return_inverse=True)
    evaluator = _Evaluator(labels, seed)
    geodesic: list[ModelLayer] = []
    for segment in track(traj.segments, "comparing with the geodesic"):
        times = layer_times(segment, time)
        path = StraightPath(segment.arrays[0], segment.arrays[-1])
        predictions = path_predictions(segment, times, path)
        layers = evaluator.layers(segment, predictions)
        evaluator.unexplained_by_line |= {
            layer.name: layer.missed for layer in layers if layer.missed and layer.missed > 1e-12
        }
        geodesic += layers
    if not traj.segments:
        return Comparison(skipped="No two layers share a feature space.")
    # From here on, `segment` and `times` are those of the last segment.
    size = _rotation_bytes(segment)
    rotating = "The models that rotate features"
    shortage = on_rank_zero(partial(_memory_shortage, traj, rotating, size))
    if shortage and model is not None:
        raise FeatureError(shortage)
    if shortage:
        return Comparison(geodesic=tuple(geodesic), skipped=shortage)
    etf = simplex_etf_prediction(segment.arrays[-1], segment.arrays[0], labels)
    comparison = Comparison(
        geodesic=tuple(geodesic),
        ufm=() if etf is None else tuple(evaluator.layers(segment, [etf], last=True)),
        skipped=on_rank_zero(partial(_reason_skipped, traj, segment, len(classes), mufm)),
    )
    if model is not None:
        _check(model, segment, evaluator.sample)
        path = StraightPath(model.X, model.H)
        predictions = path_predictions(segment, times, path, rotate=True)
        layers = evaluator.layers(segment, predictions)
        return replace(comparison, mufm=tuple(layers), solution=model, skipped="")
    if comparison.skipped:
        return comparison
    try:
        fit = MUFMFit(segment, labels, times, seed)
        solution, predictions, held_out = fit.fit()
    except (FeatureError, ConvergenceError) as error:
        return replace(comparison, skipped=str(error))
    comparison = replace(
        comparison,
        mufm=tuple(evaluator.layers(segment, predictions)),
        solution=solution,
        held_out=held_out,
        skipped="",
    )
    weight = _classifier_weight(traj, segment, classes)
    classifier_fit = None if weight is None else fit.fit_with_classifier(weight)
    if classifier_fit is None:
        return comparison
    classifier_model, predictions, held_out_given = classifier_fit
    return replace(
        comparison,
        given=tuple(evaluator.layers(segment, predictions)),
        reading=classifier_model,
        held_out_given=held_out_given,
    )


def _rotation_bytes(segment: Segment) -> int:
    """Return the bytes needed to rotate the features of a layer."""
    d = segment.arrays[0].shape[1]
    return 8 * _ROTATION_MATRICES * d * min(d, MAX_DIRECTIONS)


def _memory_shortage(traj: Trajectory, purpose: str, size: int) -> str:
    """Return a message if `size` bytes do not fit in memory, else an empty string."""
    unused = available_bytes()
    available = 0.8 * total_memory() if unused is None else unused - traj.nbytes
    if size <= available:
        return ""
    return (
        f"{purpose} need about {size / 2**30:.1f} GiB; {max(available, 0) / 2**30:.1f} GiB is "
        "available. Allow more memory, or use features of fewer dimensions."
    )


def _reason_skipped(traj: Trajectory, segment: Segment, classes: int, mufm: bool | None) -> str:
    """Return why MUFM is not fitted, or an empty string."""
    n, d = segment.arrays[0].shape
    if mufm is False:
        return "MUFM was left out, as requested (`mufm=False`)."
    size = _rotation_bytes(segment) + 8 * _FIT_MATRICES * d * min(n, d)
    if shortage := _memory_shortage(traj, "MUFM's matrices", size):
        return shortage
    if mufm:
        return ""
    if traj.classifier is None and traj.predictions is None:
        return "No classifier was found; MUFM models networks with a classifier."
    seconds = expected_seconds(segment, classes)
    if seconds <= DEFAULT_SECONDS:
        return ""
    return (
        f"MUFM of {n} samples, {classes} classes and {d} features would take about "
        f"{counted(round(seconds / 60), 'minute')} on one core; fit it with `mufm=True`."
    )


class _Evaluator:
    """Compares predictions of a segment's layers with the measured features."""

    def __init__(self, labels: Int[np.ndarray, " n"], seed: int) -> None:
        self.labels = labels
        classes = int(labels.max()) + 1
        per_class = max(1, W2_SAMPLES // classes)
        order = np.random.default_rng(seed).permutation(len(labels))
        samples = [order[labels[order] == k][:per_class] for k in range(classes)]
        self.sample = np.sort(np.concatenate(samples))
        # For each layer, the fraction of its variance that the geodesic model does not explain.
        self.unexplained_by_line: dict[str, float] = {}

    def layers(
        self, segment: Segment, predictions: Iterable[Prediction], *, last: bool = False
    ) -> list[ModelLayer]:
        """Evaluate predictions of all layers of a segment, or only of the `last`."""
        targets = list(zip(segment.names, segment.arrays, strict=True))[-1 if last else 0 :]
        layers = []
        for prediction, (name, array) in zip(predictions, targets, strict=True):
            features = materialize(segment.arrays, prediction.features)
            errors = Errors.of(features, prediction.baseline, array, self.labels)
            line = self.unexplained_by_line.get(name, 0.0)
            unexplained = errors.model / errors.variance if errors.variance > 0 else None
            r2 = relative_gain(errors.model, errors.baseline)
            w2 = None
            if errors.variance > 0:
                x, y = (as_float64(each[self.sample]) for each in (features, array))
                distance = wasserstein(x, y, solver=Exact()).distance
                w2 = distance / float(np.sqrt(errors.variance / len(array)))
            layers.append(
                ModelLayer(
                    name=name,
                    stage=segment.stage,
                    time=prediction.time,
                    gain=prediction.scale,
                    relative_error=None
                    if r2 is None
                    else float(np.sqrt(errors.model / errors.baseline)),
                    r2=r2,
                    r2_means=relative_gain(errors.model_means, errors.baseline_means),
                    r2_line=None if unexplained is None else relative_gain(unexplained, line),
                    missed=unexplained,
                    w2=w2,
                    collapse=collapse_of(features, self.labels, name=name, stage=segment.stage),
                )
            )
        return layers


def _classifier_weight(
    traj: Trajectory, segment: Segment, classes: Int[np.ndarray, " K"]
) -> Float[np.ndarray, "K d"] | None:
    """Return the classifier's rows for the samples' classes.

    None without a classifier, or if it does not read the segment's last layer.
    """
    if traj.classifier is None or segment.names[-1] != traj.layers[-1].name:
        return None
    weight = traj.classifier.weight
    if classes[-1] >= len(weight):
        raise ArgumentError(
            f"A label is {classes[-1]}, but the classifier has {len(weight)} rows; labels must be "
            "the classes of the network."
        )
    return weight[classes].astype(np.float64)


def _check(model: MUFMSolution, segment: Segment, sample: Int[np.ndarray, " m"]) -> None:
    steps = len(segment.arrays) - 1
    if model.layers != steps or model.X.shape != segment.arrays[0].shape:
        raise ArgumentError(
            f"The model has {model.layers} layers of {model.X.shape[0]} samples by "
            f"{model.X.shape[1]} features; after its first layer, the segment has {steps} of "
            f"{segment.arrays[0].shape[0]} by {segment.arrays[0].shape[1]}."
        )
    rows = sample if model.assignment is None else model.assignment[sample]
    inputs = as_float64(segment.arrays[0][rows])
    difference = np.linalg.norm(as_float64(model.X[sample]) - inputs)
    if difference > _INPUT_TOLERANCE * np.linalg.norm(inputs):
        raise ArgumentError(
            "The model was fitted to other inputs than those of the last segment, "
            "traj.segments[-1].arrays[0]."
        )

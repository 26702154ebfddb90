"""The network beside the models that theory offers, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import numpy as np
from jaxtyping import Float, Int

from ..arrays.rows import made_like, wide
from ..errors import ArgumentError, ConvergenceError, FeatureError
from ..neural_collapse import collapse_of
from ..runtime.memory import free
from ..runtime.processes import on_rank_zero
from ..runtime.progress import track
from ..storage.files import memory_limit
from ..trajectory import Segment, Trajectory, as_trajectory
from ..transport import Exact, wasserstein
from ..ufm.multilayer import MUFMSolution
from .fitting import Fit, expected_seconds
from .predictions import Errors, Line, Prediction, along, collapsed, gained, times
from .procrustes import TURNED
from .result import Comparison, ModelLayer

W2_SAMPLES = 300  # beside one another: enough for two digits, and quick
_TURNING = 20  # matrices, features x `TURNED`, that turning takes at its peak; measured: 17 to 19
_BASES = 8  # matrices, features x directions, beside them at the peak of a fit; measured: 5 to 7
_ROUNDED = 1e-2  # by how much a model's inputs may differ from the network's: in half precision
UNASKED = "MUFM was left out, as asked (`mufm=False`)."
PATIENCE = 60.0  # seconds on one core that nobody needs to be asked for


def compare(
    traj: Trajectory,
    model: MUFMSolution | None = None,
    *,
    mufm: bool | None = True,
    time: str = "nearest",
    seed: int = 0,
) -> Comparison:
    r"""Set a trained network's layers beside what the models predict for them.

    Every model says that features move on straight lines. Of the network it is given, and no more:

    - the *geodesic model* its first and its last layer, H_0 and H_L: a network on a Wasserstein
      geodesic whose end-to-end pairing is optimal (Wang, Gai, Zhang 2024, arXiv 2405.00985);
    - *MUFM* its first layer and the labels, and two numbers, the transport strength and the weight
      decay, chosen so that the last layer of one half of the samples is predicted best with the
      readout W fitted to the other half (squared loss, free bias). The network's own weight decay
      is that of all its layers, and says little of W's. Which directions the features take is
      nothing that MUFM can know of a wide network, where many W do as well: it is judged by shape,
      that is, up to a rotation of every layer;
    - *MUFM, readout given*: its first layer, the labels and the directions of its classifier in the
      place of MUFM's best W; the size of W and the transport strength chosen as above, for all
      layers. It is judged in the network's own directions;
    - the *plain UFM* the class means of the last layer: it says that this layer has collapsed onto
      a simplex ETF, and leaves rotation and size free, which are fitted.

    The prediction of layer l is :math:`\bar h_l + g_l ((1 - t_l) X + t_l H) Q_l`, X and H centred
    (rows are samples), where every model is also given

    - the layer's mean :math:`\bar h_l`: MUFM with a free bias commutes with translations of its
      features, and a drift of all samples together carries nothing about their classes;
    - a scale :math:`g_l`, by least squares: a network's own is set by its normalisation and read
      away by its next layer;
    - the time :math:`t_l` of an inner layer: MUFM with a transport strength for every step has
      straight paths at any times and is otherwise the same problem;
    - for MUFM, a rotation :math:`Q_l`, by least squares; it is the identity for the geodesic and
      for the readout given.

    So is the input, beside which they are judged: ``r2`` is 0 for :math:`\bar h_l + g_l X Q_l`, and
    1 for a perfect prediction. Collapse metrics depend on the times alone of these four.

    Parameters
    ----------
    traj : Trajectory
    model : MUFMSolution, optional
        Fitted to the first layer of the last segment (``fit_mufm(traj.segments[-1].arrays[0],
        traj.labels, layers=...)``), to be compared in the place of one with fitted settings.
    mufm : bool or None
        Whether to fit MUFM where no `model` is given. None: where the network has a classifier and
        the fit is expected to take a minute at most on one core, as it does unless features are
        thousands wide, samples tens of thousands or classes hundreds; ``skipped`` says why not.
        It also says if the models that rotate features do not fit into memory.
    time : {"nearest", "length", "uniform"}
        The times :math:`t_l` of inner layers, in [0, 1]: where the model's path comes nearest to
        the layer, so that its shape is judged and not its speed; the share of the root mean squared
        steps up to the layer; or l / L, constant speed over the layers.
    seed : int
        Of the halves, and of the samples between which W2 is measured (300, of all classes alike).

    Features are read a few rows at a time, and those of the models lie where the network's do: of
    a stored trajectory on the disk, in files without a name.

    Raises
    ------
    ArgumentError
        `model` has another number of layers, samples or features than the segment, or was fitted
        to other inputs; an unknown `time`.
    FeatureError
        Samples of one class; a `model`, and no memory to compare it.
    """
    found = predicted(traj, model, mufm=mufm, time=time, seed=seed)
    network = [
        collapse_of(array, traj.labels, name=name, stage=segment.stage)
        for segment in traj.segments
        for name, array in zip(segment.names, segment.arrays, strict=True)
    ]
    return replace(found, network=tuple(network))


def predicted(
    traj: Trajectory,
    model: MUFMSolution | None = None,
    *,
    mufm: bool | None = True,
    time: str = "nearest",
    seed: int = 0,
) -> Comparison:
    """What the models say and miss, as `compare`, without collapse metrics of the network's own."""
    traj = as_trajectory(traj)
    classes, labels = np.unique(traj.labels, return_inverse=True)
    labels = labels.astype(np.int64)
    view = _View(labels, seed)
    geodesic: list[ModelLayer] = []
    for segment in track(traj.segments, "comparing with the geodesic"):
        line = Line(segment.arrays[0], segment.arrays[-1])
        lines = view.layers(segment, along(segment, times(segment, time), line))
        view.lines |= {la.name: la.missed for la in lines if la.missed and la.missed > 1e-12}
        geodesic += lines
    if not traj.segments:
        return Comparison(skipped="No two layers share a feature space.")
    segment = traj.segments[-1]
    turning = partial(_no_room, traj, "The models that turn features", _turning(segment))
    wanting = on_rank_zero(turning)
    if wanting and model is not None:
        raise FeatureError(wanting)
    if wanting:
        return Comparison(geodesic=tuple(geodesic), skipped=wanting)
    final = collapsed(segment.arrays[-1], segment.arrays[0], labels)
    known = Comparison(
        geodesic=tuple(geodesic),
        ufm=() if final is None else tuple(view.layers(segment, [final], last=True)),
        skipped=on_rank_zero(partial(_left_out, traj, segment, len(classes), mufm)),
    )
    if model is not None:
        _check(model, segment, view.sample)
        line = Line(model.X.T, model.H.T)
        said = along(segment, times(segment, time), line, rotate=True)
        mine = tuple(view.layers(segment, said))
        return replace(known, mufm=mine, solution=model, skipped="")
    if known.skipped:
        return known
    try:
        fit = Fit(segment, labels, times(segment, time), seed)
        solution, said, held_out = fit.mufm()
    except (FeatureError, ConvergenceError) as error:
        return replace(known, skipped=str(error))
    known = replace(
        known,
        mufm=tuple(view.layers(segment, said)),
        solution=solution,
        held_out=held_out,
        skipped="",
    )
    readout = _readout(traj, segment, classes)
    given = None if readout is None else fit.given(readout)
    if given is None:
        return known
    reading, said, held_out_given = given
    return replace(
        known,
        given=tuple(view.layers(segment, said)),
        reading=reading,
        held_out_given=held_out_given,
    )


def _turning(segment: Segment) -> int:
    """Bytes that turning the features of a layer takes."""
    d = segment.arrays[0].shape[1]
    return 8 * _TURNING * d * min(d, TURNED)


def _no_room(traj: Trajectory, who: str, size: int) -> str:
    """Why models that take so many bytes do not fit into memory; empty where they do."""
    left = free()
    available = 0.8 * memory_limit() if left is None else left - traj.nbytes
    if size <= available:
        return ""
    return (
        f"{who} need about {size / 2**30:.1f} GiB; {max(available, 0) / 2**30:.1f} GiB is "
        "available. Allow more (`memory`), or use features of fewer dimensions."
    )


def _left_out(traj: Trajectory, segment: Segment, classes: int, asked: bool | None) -> str:
    """Why MUFM is not fitted, asked or not; empty where it is."""
    n, d = segment.arrays[0].shape
    if asked is False:
        return UNASKED
    if wanting := _no_room(traj, "MUFM's matrices", _turning(segment) + 8 * _BASES * d * min(n, d)):
        return wanting
    if asked:
        return ""
    if traj.classifier is None and traj.predictions is None:
        return "The network has no classifier that was found; MUFM is about networks with one."
    seconds = expected_seconds(segment, classes)
    if seconds <= PATIENCE:
        return ""
    return (
        f"MUFM of {n} samples of {classes} classes, {d} features wide, would take about "
        f"{seconds / 60:.0f} minutes on one core; ask for it with `mufm=True`."
    )


class _View:
    """Sets predictions of a segment's layers beside what was measured."""

    def __init__(self, labels: Int[np.ndarray, " n"], seed: int) -> None:
        self.labels = labels
        each = max(1, W2_SAMPLES // (int(labels.max()) + 1))
        order = np.random.default_rng(seed).permutation(len(labels))
        mine = [order[labels[order] == k][:each] for k in range(int(labels.max()) + 1)]
        self.sample = np.sort(np.concatenate(mine))
        self.lines: dict[str, float] = {}  # what the geodesic model misses of a layer

    def layers(
        self, segment: Segment, predictions: Iterable[Prediction], *, last: bool = False
    ) -> list[ModelLayer]:
        """Judge a prediction of every layer of a segment, or of its last one."""
        places = list(zip(segment.names, segment.arrays, strict=True))
        found = []
        for prediction, (name, array) in zip(
            predictions, places[-1:] if last else places, strict=True
        ):
            features = made_like(segment.arrays, prediction.features)
            errors = Errors.of(features, prediction.still, array, self.labels)
            line = self.lines.get(name, 0.0)
            missed = errors.model / errors.variance if errors.variance > 0 else None
            found.append(
                ModelLayer(
                    name=name,
                    stage=segment.stage,
                    time=prediction.time,
                    gain=prediction.gain,
                    relative_error=None
                    if errors.input == 0
                    else float(np.sqrt(errors.model / errors.input)),
                    r2=gained(errors.model, errors.input),
                    r2_means=gained(errors.model_means, errors.input_means),
                    r2_line=None if missed is None else gained(missed, line),
                    missed=missed,
                    w2=self._w2(features, array, errors.variance),
                    collapse=collapse_of(features, self.labels, name=name, stage=segment.stage),
                )
            )
        return found

    def _w2(
        self,
        features: Float[np.ndarray, "n d"],
        measured: Float[np.ndarray, "n d"],
        variance: float,
    ) -> float | None:
        if variance == 0:
            return None
        said, seen = (wide(each[self.sample]) for each in (features, measured))
        found = wasserstein(said, seen, solver=Exact())
        return found.distance / float(np.sqrt(variance / len(measured)))


def _readout(
    traj: Trajectory, segment: Segment, classes: Int[np.ndarray, " K"]
) -> Float[np.ndarray, "K d"] | None:
    """The classifier's rows of the classes that the samples are of; None where it reads another."""
    if traj.classifier is None or traj.classifier.weight.shape[1] != segment.arrays[-1].shape[1]:
        return None
    weight = traj.classifier.weight
    if classes[-1] >= len(weight):
        raise ArgumentError(
            f"A label is {classes[-1]}, and the classifier has {len(weight)} rows; labels must be "
            "the network's own classes."
        )
    return weight[classes].astype(np.float64)


def _check(model: MUFMSolution, segment: Segment, sample: Int[np.ndarray, " m"]) -> None:
    steps = len(segment.arrays) - 1
    if model.layers != steps or model.X.T.shape != segment.arrays[0].shape:
        raise ArgumentError(
            f"The model has {model.layers} layers of {model.X.shape[1]} samples by "
            f"{model.X.shape[0]} features; the segment has {steps} of "
            f"{segment.arrays[0].shape[0]} by {segment.arrays[0].shape[1]}."
        )
    entered = sample if model.assignment is None else model.assignment[sample]
    entering = wide(segment.arrays[0][entered])
    off = np.linalg.norm(wide(model.X.T[sample]) - entering)
    if off > _ROUNDED * np.linalg.norm(entering):
        raise ArgumentError(
            "The model was fitted to other inputs than those of the last segment, "
            "traj.segments[-1].arrays[0]."
        )

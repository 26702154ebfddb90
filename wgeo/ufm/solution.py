"""Solutions of the unconstrained feature models, and their certificates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int

from ..neural_collapse import LayerCollapse, collapse_of
from ..results import Result
from .arguments import check_layer
from .problem import Problem

Verdict = Literal["global", "strict saddle", "undecided"]


@dataclass(frozen=True, repr=False)
class Certificate(Result):
    """What is proved about a point.

    Attributes
    ----------
    verdict : {"global", "strict saddle", "undecided"}
    gradient_norm : float
        Norm of the gradient of the objective in all its variables.
    spectral_norm, threshold : float or None
        ``spectral_norm`` is ||G||_2, where G is the gradient of the loss with respect to the
        logits; ``threshold`` is sqrt(lambda_W lambda_H). A critical point with
        ``spectral_norm <= threshold`` is global. None for deep models. For MUFM, the threshold of
        ||G||_2 is sqrt(lambda_W mu / N), and both values are divided by it.
    curvature : float or None
        Curvature of the objective along a known direction, if it is negative.
    lower_bound, gap : float or None
        A proved lower bound of the objective, and objective - lower_bound.
    evidence : str
        The theorem or computation that supports the verdict, as a sentence.

    Examples
    --------
    >>> from wgeo import ufm
    >>> solution = ufm.fit_ce([0, 1, 2] * 5, dim=4, weight_decay=1e-3, feature_decay=1e-3)
    >>> proof = solution.certificate
    >>> proof.verdict, abs(round(proof.gap, 6)), proof.spectral_norm <= 1.001 * proof.threshold
    ('global', 0.0, True)
    """

    verdict: Verdict
    gradient_norm: float
    spectral_norm: float | None = None
    threshold: float | None = None
    curvature: float | None = None
    lower_bound: float | None = None
    gap: float | None = None
    evidence: str = ""


@dataclass(frozen=True, eq=False, repr=False)
class UFMSolution(Result):
    """A point of an unconstrained feature model, with its certificate.

    Attributes
    ----------
    problem : Problem
        The model: labels, widths and penalties.
    H : ndarray, (d, N)
        The free features; columns are samples.
    weights : tuple of ndarray
        W_1, ..., W_L; the last is the classifier.
    b : ndarray, (K,)
        Bias; zero if the model has none.
    objective : float
    certificate : Certificate
    seconds : float
        Wall time of the fit.
    settings : mapping
        How the point was computed.
    values : tuple of float
        Final objective of each random start, ascending; empty for a closed form.
    gradient_norms, steps : tuple
        Final gradient norm and number of iterations of each start, in the order of `values`.

    Examples
    --------
    >>> from wgeo import ufm
    >>> solution = ufm.fit_ce([0, 1, 2] * 5, dim=4, weight_decay=1e-3, feature_decay=1e-3)
    >>> solution.H.shape, solution.W.shape, solution.model
    ((4, 15), (3, 4), 'ufm-ce')
    >>> round(sum(solution.terms.values()) / solution.objective, 6)
    1.0
    """

    problem: Problem
    H: Float[np.ndarray, "d N"]
    weights: tuple[Float[np.ndarray, "_ d"], ...]
    b: Float[np.ndarray, " K"]
    objective: float
    certificate: Certificate
    seconds: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    values: tuple[float, ...] = ()
    gradient_norms: tuple[float, ...] = ()
    steps: tuple[int, ...] = ()

    @property
    def model(self) -> str:
        """``ufm-ce`` or ``ufm-mse``; for a deep model ``dufm-mse-relu``, for example."""
        p = self.problem
        return f"ufm-{p.loss}" if p.depth == 2 else f"dufm-{p.loss}-{p.activation}"

    @property
    def W(self) -> Float[np.ndarray, "K d"]:  # noqa: N802
        """The classifier."""
        return self.weights[-1]

    @property
    def labels(self) -> Int[np.ndarray, " N"]:
        """Class of every column of H."""
        return self.problem.labels

    @property
    def layers(self) -> tuple[Float[np.ndarray, "d N"], ...]:
        """Inputs of W_1, ..., W_L: H, s(W_1 H), ..."""
        factors = [torch.from_numpy(A) for A in (self.H, *self.weights)]
        return tuple(X.numpy() for X in self.problem.layers(factors))

    @property
    def logits(self) -> Float[np.ndarray, "K N"]:
        """Logits, (K, N)."""
        return self.W @ self.layers[-1] + self.b[:, None]

    @property
    def terms(self) -> dict[str, float]:
        """Terms of the objective: ``fit``, ``weight_decay``, ``feature_decay``, ``bias_decay``."""
        return self.problem.terms(self.point())

    def point(self) -> torch.Tensor:
        """Return all variables as one vector."""
        return self.problem.join((self.H, *self.weights), self.b)

    def layer(self, index: int) -> Float[np.ndarray, "N d"]:
        """Return the input of W_{index + 1}; rows are samples.

        Examples
        --------
        >>> from wgeo import ufm
        >>> solution = ufm.fit_ce([0, 1, 2] * 5, dim=4, weight_decay=1e-3, feature_decay=1e-3)
        >>> solution.layer(0).shape, solution.H.shape
        ((15, 4), (4, 15))
        """
        check_layer(index, len(self.weights) - 1)
        return np.ascontiguousarray(self.layers[index].T)

    def collapse(self, index: int | None = None) -> LayerCollapse:
        """Return the collapse metrics of a layer, by default the classifier's input."""
        last = len(self.weights) - 1
        index = last if index is None else index
        classifier = self.W if index == last else None
        return collapse_of(self.layer(index), self.labels, classifier, name=f"layer{index}")

    def curve(self) -> list[LayerCollapse]:
        """Return the collapse metrics of every layer, first to last.

        Examples
        --------
        >>> from wgeo import ufm
        >>> decays = {"weight_decays": [1e-3] * 3, "feature_decay": 1e-3}
        >>> solution = ufm.fit_deep([0, 1] * 5, dim=4, **decays)
        >>> [round(layer.nc1, 6) for layer in solution.curve()]
        [0.0, 0.0, 0.0]
        """
        return [self.collapse(index) for index in range(len(self.weights))]

    def to_dict(self) -> dict[str, Any]:
        """Return everything except the arrays, ready for JSON."""
        p = self.problem
        return {
            "model": self.model,
            "classes": p.num_classes,
            "samples": p.num_samples,
            "dim": p.dim,
            "decays": list(p.decays),
            "bias_decay": p.bias_decay if p.with_bias else None,
            "objective": self.objective,
            "terms": self.terms,
            "certificate": self.certificate.to_dict(),
            "spread": [self.values[0], self.values[-1]] if self.values else None,
            "settings": dict(self.settings),
            "seconds": self.seconds,
        }

    def _description(self) -> str:
        p = self.problem
        return (
            f"{self.model}, {p.num_samples} samples of {p.num_classes} classes: objective "
            f"{self.objective:.6g}, {self.certificate.verdict}, gradient norm "
            f"{self.certificate.gradient_norm:.2g}"
        )

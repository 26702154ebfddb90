"""Curvature around a solution, and a direction of descent if one is found."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from ..arrays.checks import as_count
from ..errors import ArgumentError, ConvergenceError
from ..results import Result
from ..runtime.threads import one_thread
from .certify import CRITICAL, escape_direction
from .problem import Problem
from .solution import Certificate, UFMSolution, Verdict

KINK = 1e-9  # relative size below which the input of a ReLU counts as zero


@dataclass(frozen=True, eq=False, repr=False)
class Landscape(Result):
    """The neighborhood of a solution.

    Attributes
    ----------
    verdict : {"global", "strict saddle", "undecided"}
    gradient_norm : float
    eigenvalues : ndarray
        The smallest eigenvalues of the Hessian, ascending, by Lanczos.
    residuals : ndarray
        ||Hv - theta v|| of each computed value theta and its unit vector v. An eigenvalue of the
        Hessian H lies within this distance of theta.
    curvature : float or None
        v^T H v for `direction` v, computed by a Hessian-vector product; None without a direction.
    direction : dict or None
        A unit vector along which the objective F falls: ``H``, ``W1``, ..., ``WL`` and, with a
        bias, ``b``.
    step, decrease : float or None
        F(x) - F(x + step * direction) = decrease > 0, from two evaluations of F.
    kinks : int
        Number of ReLU inputs that are zero up to rounding, at which the Hessian is one-sided.
    certificate : Certificate
        The solution's certificate.
    evidence : str
    seconds : float

    Examples
    --------
    >>> from wgeo import ufm
    >>> solution = ufm.fit_mse([0, 1] * 3, dim=2, weight_decay=0.01, feature_decay=0.01)
    >>> result = ufm.landscape(solution)
    >>> result.verdict, len(result.eigenvalues), bool(result.eigenvalues.min() > -1e-9)
    ('global', 3, True)
    """

    verdict: Verdict
    gradient_norm: float
    eigenvalues: Float[np.ndarray, " k"]
    residuals: Float[np.ndarray, " k"]
    curvature: float | None
    direction: dict[str, np.ndarray] | None
    step: float | None
    decrease: float | None
    kinks: int
    certificate: Certificate
    evidence: str
    seconds: float

    _included: ClassVar[tuple[str, ...]] = ("eigenvalues", "residuals")
    _omitted: ClassVar[tuple[str, ...]] = ("direction",)


def landscape(solution: Any, *, eigenvalues: int = 3, seed: int = 0) -> Landscape:
    """Classify a point of a model as global, strict saddle or undecided, with evidence.

    A point that is not certified as global is called a strict saddle if it is critical and F falls
    along a direction of negative curvature. Two directions are tried: the eigenvector of the
    smallest eigenvalue and, for one layer of weights, the explicit direction in which W and H grow
    along an unused direction of feature space (Zhu et al. 2021).

    Parameters
    ----------
    solution : UFMSolution
        A result of `fit_ce`, `fit_mse`, `fit_deep` or `lower_rank`.
    eigenvalues : int
        How many of the smallest eigenvalues to compute: at least 1, and less than the number of
        variables.
    seed : int
        Random seed of the first Lanczos vector.

    Raises
    ------
    ArgumentError
        The solution is of another kind, its factors were changed, or the number of eigenvalues is
        out of range or not a whole number.
    ConvergenceError
        Lanczos did not find any of the eigenvalues.

    Examples
    --------
    No theorem applies to four classes in the plane; the Hessian has no negative eigenvalue:

    >>> from wgeo import ufm
    >>> decays = {"weight_decay": 5e-3, "feature_decay": 4e-3}
    >>> solution = ufm.fit_ce([0, 1, 2, 3], dim=2, **decays, restarts=1)
    >>> result = ufm.landscape(solution, eigenvalues=1)
    >>> result.verdict, bool(result.eigenvalues[0] > -1e-9)
    ('undecided', True)
    """
    start_time = time.perf_counter()
    if not isinstance(solution, UFMSolution):
        raise ArgumentError(
            f"landscape is for solutions of fit_ce, fit_mse, fit_deep and lower_rank, not for "
            f"{type(solution).__name__}; use the `certificate` of a MUFM solution."
        )
    problem, x = solution.problem, solution.point()
    objective = float(problem.value(x))
    if not math.isclose(objective, solution.objective, rel_tol=1e-9):
        raise ArgumentError(
            f"The factors of this solution have the objective {objective:.9g}, but its certificate "
            f"is for {solution.objective:.9g}. Pass a solution as a fit returned it."
        )
    if as_count(eigenvalues, "eigenvalues", 1) >= problem.size:
        raise ArgumentError(f"eigenvalues must be between 1 and {problem.size - 1}.")
    with one_thread():
        values, vectors, residuals = _smallest_eigenpairs(problem, x, eigenvalues, seed)
    gradient_norm = float(problem.gradient(x).norm())
    verdict: Verdict = solution.certificate.verdict
    evidence = solution.certificate.evidence
    descent = None if verdict == "global" else _descent(problem, x, vectors[:, 0])
    curvature, direction, step, decrease = descent or (None, None, None, None)
    kinks = _kinks(problem, x)
    if descent is not None:
        evidence = (
            f"Along a direction of curvature {curvature:.6g} the objective falls by "
            f"{decrease:.3g} in a step of {step:.3g}."
        )
        critical = gradient_norm <= CRITICAL
        verdict = "strict saddle" if critical else "undecided"
        if not critical:
            evidence += f" The point is not critical: its gradient has norm {gradient_norm:.2g}."
    elif verdict != "global":
        verdict = "undecided"
        at_kinks = f", and {kinks} ReLU inputs are at their kink" if kinks else ""
        evidence = (
            f"The smallest computed eigenvalue of the Hessian is {values[0]:.3g}, the gradient's "
            f"norm {gradient_norm:.2g}{at_kinks}. {evidence}"
        )
    return Landscape(
        verdict=verdict,
        gradient_norm=gradient_norm,
        eigenvalues=values,
        residuals=residuals,
        curvature=curvature,
        direction=direction,
        step=step,
        decrease=decrease,
        kinks=kinks,
        certificate=solution.certificate,
        evidence=evidence,
        seconds=time.perf_counter() - start_time,
    )


def _smallest_eigenpairs(
    problem: Problem, x: Float[torch.Tensor, " P"], count: int, seed: int
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "P k"], Float[np.ndarray, " k"]]:
    """Return eigenvalues of the Hessian at x, their vectors and their residuals, by Lanczos."""

    def product(v: np.ndarray) -> np.ndarray:
        return problem.hvp(x, torch.from_numpy(np.ascontiguousarray(v.ravel()))).numpy()

    P = problem.size
    hessian = LinearOperator((P, P), matvec=product, dtype=np.float64)
    start = np.random.default_rng(seed).standard_normal(P)
    krylov_size = min(P, max(4 * count + 1, 40))
    try:
        values, vectors = eigsh(
            hessian, k=count, which="SA", v0=start, ncv=krylov_size, maxiter=20 * P, tol=1e-10
        )
    except ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
        if len(values) == 0:
            raise ConvergenceError(
                "Lanczos found no eigenvalue of the Hessian; try fewer eigenvalues or another seed."
            ) from error
    order = np.argsort(values)
    values, vectors = values[order], vectors[:, order]
    residuals = [
        float(np.linalg.norm(product(v) - t * v)) for t, v in zip(values, vectors.T, strict=True)
    ]
    return values, vectors, np.array(residuals)


def _descent(
    problem: Problem, x: torch.Tensor, eigenvector: Float[np.ndarray, " P"]
) -> tuple[float, dict[str, np.ndarray], float, float] | None:
    """Return `curvature`, `direction`, `step` and `decrease` of a `Landscape`.

    The direction is that of theorem M3, or else the eigenvector. None if F decreases along neither.
    """
    directions = [torch.from_numpy(eigenvector.copy())]
    if problem.depth == 2 and (escape := escape_direction(problem, x)) is not None:
        directions.insert(0, escape.direction)
    floor = 1e-8 * max(problem.decays)
    for v in directions:
        curvature = float(v @ problem.hvp(x, v))
        if curvature >= -floor:
            continue
        v = v if float(problem.gradient(x) @ v) <= 0 else -v
        steps = 2.0 ** torch.arange(3, -24, -1, dtype=torch.float64)
        decreases = problem.value(x) - problem.value(x + steps[:, None] * v)
        best = int(decreases.argmax())
        if float(decreases[best]) > 0:
            (H, *weights), b = problem.split(v)
            parts = {"H": H, **{f"W{i}": W for i, W in enumerate(weights, 1)}, "b": b}
            direction = {name: part.numpy() for name, part in parts.items() if part is not None}
            return curvature, direction, float(steps[best]), float(decreases[best])
    return None


def _kinks(problem: Problem, x: torch.Tensor) -> int:
    if problem.activation == "linear":
        return 0
    factors, _ = problem.split(x)
    layers = problem.layers(factors)
    inputs = [A @ X for A, X in zip(factors[1:-1], layers, strict=False)]
    return sum(int((P.abs() <= KINK * P.abs().max()).sum()) for P in inputs)

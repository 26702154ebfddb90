"""What the landscape looks like around a solution: slope, curvature, and a way down if any."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from ..errors import ArgumentError, ConvergenceError
from ..runtime.threads import one_thread
from .certify import CRITICAL
from .problem import Problem
from .solution import Certificate, UFMSolution
from .theorems import escape

KINK = 1e-9  # relative size below which an input of a ReLU lies on its kink


@dataclass(frozen=True, eq=False)
class Landscape:
    """The neighbourhood of a solution.

    Attributes
    ----------
    verdict : {"global", "strict saddle", "undecided"}
    gradient_norm : float
    eigenvalues : ndarray
        The smallest of the Hessian, rising, by Lanczos on Hessian-vector products.
    residuals : ndarray
        ||Hv - theta v|| of each: within so much of theta lies a true eigenvalue.
    curvature : float or None
        Rayleigh quotient of `direction`, by a Hessian-vector product.
    direction : dict or None
        ``H``, ``W1``, ..., ``WL`` and ``b`` of a unit direction along which F falls.
    step, decrease : float or None
        F(x) - F(x + step direction) = decrease > 0, by evaluation.
    kinks : int
        ReLU inputs at zero: there the Hessian is that of one side.
    certificate : Certificate
        The solution's own.
    evidence : str
    seconds : float
    """

    verdict: Literal["global", "strict saddle", "undecided"]
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

    def to_dict(self) -> dict[str, Any]:
        """Everything but the direction, ready for JSON."""
        return {
            "verdict": self.verdict,
            "gradient_norm": self.gradient_norm,
            "eigenvalues": self.eigenvalues.tolist(),
            "residuals": self.residuals.tolist(),
            "curvature": self.curvature,
            "step": self.step,
            "decrease": self.decrease,
            "kinks": self.kinks,
            "certificate": self.certificate.to_dict(),
            "evidence": self.evidence,
            "seconds": self.seconds,
        }


def landscape(solution: Any, *, eigenvalues: int = 3, seed: int = 0) -> Landscape:
    """Judge a point of a model: global, strict saddle, or undecided, and why.

    A point that its certificate does not prove global is a strict saddle if it is critical and a
    direction of negative curvature is found, the explicit one of fact M3 or Lanczos's, along which
    F falls when evaluated.

    Parameters
    ----------
    solution : UFMSolution
        Of any ``fit_*``, or any point by `place`.
    eigenvalues : int
        How many of the smallest to compute.
    seed : int
        Of Lanczos's first vector.

    Raises
    ------
    ArgumentError
        A solution of another kind, or more eigenvalues than there are.
    ConvergenceError
        Lanczos found none of the eigenvalues.
    """
    began = time.perf_counter()
    if not isinstance(solution, UFMSolution):
        raise ArgumentError(
            f"landscape is for solutions of fit_ce, fit_mse, fit_deep and place, not of "
            f"{type(solution).__name__}; a MUFM solution has its own `certificate`."
        )
    problem, x = solution.problem, solution.point()
    if not 1 <= eigenvalues < problem.size:
        raise ArgumentError(f"eigenvalues must be between 1 and {problem.size - 1}.")
    with one_thread():
        values, vectors, residuals = smallest_eigenpairs(problem, x, eigenvalues, seed)
    slope = float(problem.gradient(x).norm())
    verdict: Literal["global", "strict saddle", "undecided"] = solution.certificate.verdict
    evidence = solution.certificate.evidence
    way = None if verdict == "global" else _way_down(problem, x, vectors[:, 0])
    kinks = _kinks(problem, x)
    if way is not None:
        evidence = (
            f"Along a direction with Hessian {way[1]:.6g} the objective falls by {way[3]:.3g} "
            f"within a step of {way[2]:.3g}."
        )
        critical = slope <= CRITICAL
        verdict = "strict saddle" if critical else "undecided"
        if not critical:
            evidence += f" The point is not critical: its gradient has norm {slope:.2g}."
    elif verdict != "global":
        verdict = "undecided"
        evidence = (
            f"The smallest Hessian eigenvalue found is {values[0]:.3g}, the gradient's norm "
            f"{slope:.2g}" + (f", {kinks} ReLU inputs at their kink" if kinks else "") + ". "
        ) + solution.certificate.evidence
    return Landscape(
        verdict=verdict,
        gradient_norm=slope,
        eigenvalues=values,
        residuals=residuals,
        curvature=None if way is None else way[1],
        direction=None if way is None else _named(problem, way[0]),
        step=None if way is None else way[2],
        decrease=None if way is None else way[3],
        kinks=kinks,
        certificate=solution.certificate,
        evidence=evidence,
        seconds=time.perf_counter() - began,
    )


def smallest_eigenpairs(
    problem: Problem, x: Float[torch.Tensor, " P"], count: int, seed: int
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "P k"], Float[np.ndarray, " k"]]:
    """The smallest eigenvalues of the Hessian at x, their vectors and residuals, by Lanczos."""

    def product(v: np.ndarray) -> np.ndarray:
        return problem.hvp(x, torch.from_numpy(np.ascontiguousarray(v.ravel()))).numpy()

    P = problem.size
    hessian = LinearOperator((P, P), matvec=product, dtype=np.float64)
    start = np.random.default_rng(seed).standard_normal(P)
    krylov = min(P, max(4 * count + 1, 40))
    try:
        values, vectors = eigsh(
            hessian, k=count, which="SA", v0=start, ncv=krylov, maxiter=20 * P, tol=1e-10
        )
    except ArpackNoConvergence as stopped:
        values, vectors = stopped.eigenvalues, stopped.eigenvectors
        if len(values) == 0:
            raise ConvergenceError(
                "Lanczos found no eigenvalue of the Hessian; ask for fewer, or another seed."
            ) from stopped
    order = np.argsort(values)
    values, vectors = values[order], vectors[:, order]
    residuals = [
        float(np.linalg.norm(product(v) - t * v)) for t, v in zip(values, vectors.T, strict=True)
    ]
    return values, vectors, np.array(residuals)


def _way_down(
    problem: Problem, x: torch.Tensor, lanczos: Float[np.ndarray, " P"]
) -> tuple[torch.Tensor, float, float, float] | None:
    """Direction, curvature, step and decrease of a way down that curvature explains."""
    directions = [torch.from_numpy(lanczos.copy())]
    if problem.depth == 2 and (out := escape(problem, x)) is not None:
        directions.insert(0, out.direction)
    floor = 1e-8 * max(problem.decays)
    for v in directions:
        curvature = float(v @ problem.hvp(x, v))
        if curvature >= -floor:
            continue
        v = v if float(problem.gradient(x) @ v) <= 0 else -v
        steps = 2.0 ** torch.arange(3, -24, -1, dtype=torch.float64)
        falls = problem.value(x) - problem.value(x + steps[:, None] * v)
        best = int(falls.argmax())
        if float(falls[best]) > 0:
            return v, curvature, float(steps[best]), float(falls[best])
    return None


def _kinks(problem: Problem, x: torch.Tensor) -> int:
    if problem.activation == "linear":
        return 0
    factors, _ = problem.split(x)
    X = problem.layers(factors)
    inputs = [A @ entering for A, entering in zip(factors[1:-1], X, strict=False)]
    return sum(int((P.abs() <= KINK * P.abs().max()).sum()) for P in inputs)


def _named(problem: Problem, v: torch.Tensor) -> dict[str, np.ndarray]:
    (H, *weights), b = problem.split(v)
    parts = {"H": H, **{f"W{i}": W for i, W in enumerate(weights, 1)}}
    if b is not None:
        parts["b"] = b
    return {name: part.numpy() for name, part in parts.items()}

"""Newton's method, and escapes from critical points that are not minima.

Newton's method is that of Steihaug (1983): preconditioned conjugate gradients minimize the
quadratic model of the objective inside an ellipsoid, a ball in the preconditioner's norm. Along
negative curvature, the step goes to the boundary. No constant here depends on units, because the
preconditioner's norm adapts to the problem.

At a global minimum of MUFM the matrix H X^T is positive semi-definite. If v^T (H X^T / N) v < 0,
the reflections W (I - 2 v v^T) and (I - 2 v v^T) H lower the objective by 2 mu |v^T (H X^T / N) v|.
The other way to escape is a step along `saddle_direction`. The cost of both is linear in the width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

Matrix = Float[np.ndarray, "K r"]

ROUNDING = 1e-14  # relative differences of the objective below this are rounding errors
ACCEPT, GOOD, BAD = 0.1, 0.75, 0.25  # ratio of actual to predicted reduction
INNER = 300  # largest number of iterations of conjugate gradients in a step
NEGLIGIBLE = 1e-9  # eigenvalues this small, relative to the matrix, do not count as negative


@dataclass(frozen=True, eq=False)
class NewtonResult:
    """The end of a Newton iteration.

    `decrement` is sqrt(g^T M g / F), with the objective F, its gradient g and the preconditioner M;
    it has no units. The next Newton step would lower F by about the fraction decrement^2 / 2.
    """

    point: Any  # the last accepted; up to rounding, the lowest
    decrement: float
    steps: int  # steps tried, without a last one that ends the search because of rounding
    products: int  # Hessian products of all steps


def trust_region_newton(
    at: Callable[[Matrix], Any], start: Matrix, *, tolerance: float, max_steps: int = 300
) -> NewtonResult:
    """Minimize a positive objective from one start.

    Parameters
    ----------
    at : callable
        Returns the point at a matrix w. The methods of a point are `value`, `gradient`,
        `hessian_product` and `preconditioner`; the last returns a positive definite approximate
        inverse of the Hessian.
    start : ndarray
    tolerance : float
        Decrement (see `NewtonResult`) at which a point counts as critical.
    max_steps : int
    """
    point = at(start)
    value = point.value()
    # A Newton step of this length, in the preconditioner's norm, lowers F by about F.
    radius = math.sqrt(2 * value)
    gradient, solve = point.gradient(), point.preconditioner()
    size = _decrement(gradient, solve, value)
    products = 0
    for step in range(max_steps):
        if size <= tolerance:
            return NewtonResult(point, size, step, products)
        forcing = min(0.1, math.sqrt(size))
        move = _trust_region_step(gradient, point.hessian_product, solve, radius, forcing)
        products += move.iterations
        trial = at(point.w + move.step)
        new_value = trial.value()
        slack = ROUNDING * abs(value)
        ratio = -1.0
        if np.isfinite(new_value):
            ratio = (value - new_value + slack) / (move.reduction + slack)
        if ratio > GOOD and move.boundary:
            radius *= 3
        elif ratio < BAD:
            radius = 0.25 * min(radius, move.length)
        if ratio <= ACCEPT:
            if radius <= 1e-12 * math.sqrt(value):
                break
            continue
        new_gradient, solve = trial.gradient(), trial.preconditioner()
        before, size = size, _decrement(new_gradient, solve, new_value)
        if move.reduction <= slack and size > before / 2:
            break  # rounding: neither the objective nor its gradient decreases any more
        point, value, gradient = trial, new_value, new_gradient
    else:
        step = max_steps
    return NewtonResult(point, _decrement(gradient, point.preconditioner(), value), step, products)


class _Step(NamedTuple):
    step: Matrix
    length: float  # of the step, in the preconditioner's norm
    reduction: float  # predicted
    boundary: bool  # whether the step ends on the boundary
    iterations: int


def _decrement(gradient: Matrix, solve: Callable[[Matrix], Matrix], value: float) -> float:
    return math.sqrt(max(np.vdot(gradient, solve(gradient)), 0.0) / value)


def _trust_region_step(
    gradient: Matrix,
    product: Callable[[Matrix], Matrix],
    solve: Callable[[Matrix], Matrix],
    radius: float,
    forcing: float,
) -> _Step:
    """Minimize the quadratic model of the objective, whose Hessian is `product`, in the ellipsoid.

    Conjugate gradients stop when the residual is at most `forcing` times the gradient.
    """
    residual = gradient
    move, image = np.zeros_like(residual), np.zeros_like(residual)
    z = solve(residual)
    first = rest = float(np.vdot(residual, z))
    direction = -z
    # <move, move>, <move, direction>, <direction, direction> in the preconditioner's norm
    mm, md, dd = 0.0, 0.0, rest
    boundary = False
    iterations = 0
    while iterations < INNER:
        iterations += 1
        image_of_direction = product(direction)
        curvature = float(np.vdot(direction, image_of_direction))
        length = rest / curvature if curvature > 0 else 0.0
        norm_squared = mm + 2 * length * md + length**2 * dd
        boundary = curvature <= 0 or bool(norm_squared >= radius**2)
        if boundary:
            length = (math.sqrt(md**2 + dd * (radius**2 - mm)) - md) / dd
        move = move + length * direction
        image = image + length * image_of_direction
        mm += 2 * length * md + length**2 * dd
        residual = residual + length * image_of_direction
        if boundary:
            break
        z = solve(residual)
        rest, last = float(np.vdot(residual, z)), rest
        if rest <= forcing**2 * first:
            break
        direction = (rest / last) * direction - z
        md = (rest / last) * (md + length * dd)
        dd = rest + (rest / last) ** 2 * dd
    reduction = -float(np.vdot(gradient, move)) - float(np.vdot(move, image)) / 2
    return _Step(move, math.sqrt(max(mm, 0.0)), reduction, boundary, iterations)


@dataclass(frozen=True, eq=False)
class CrossMoment:
    """H X^T / N at a critical point: diag(s) + m m^T + V Z V^T.

    The first two terms are X X^T / N. The last one is (H - X) X^T / N, which is symmetric and acts
    on the row space of W.
    """

    s: Float[np.ndarray, " r"]  # variances of the inputs, in the eigenbasis of their covariance
    mean: Float[np.ndarray, " r"]  # m
    axes: Float[np.ndarray, "r k"]  # V, an orthonormal basis of W's row space
    update: Float[np.ndarray, "k k"]  # Z

    @classmethod
    def of(
        cls,
        s: Float[np.ndarray, " r"],
        mean: Float[np.ndarray, " r"],
        w: Float[np.ndarray, "K r"],
        left: Float[np.ndarray, "r m"],
        right: Float[np.ndarray, "m r"],
    ) -> CrossMoment:
        """Compute V and Z from W and (H - X) X^T / N = left @ right."""
        axes = np.linalg.svd(w, full_matrices=False)[2].T
        inner = (axes.T @ left) @ (right @ axes)
        return cls(s, mean, axes, (inner + inner.T) / 2)

    def most_negative(self) -> tuple[float, Float[np.ndarray, " r"]] | None:
        """Return the lowest eigenvalue and its eigenvector; None if it is not clearly negative.

        Let M(theta) = diag(s) + m m^T - theta I. All eigenvalues are above theta < 0 iff the k x k
        matrix Z + (V^T M(theta)^-1 V)^-1, which decreases with theta, is positive definite.
        """
        largest = float(self.s.max(initial=0.0) + self.mean @ self.mean)
        scale = max(largest, float(np.linalg.norm(self.update, 2)))
        if scale == 0:
            return None
        low, high = -2 * scale, -NEGLIGIBLE * scale
        if self._secular(high)[0] >= 0:
            return None
        for _ in range(40):
            middle = -np.sqrt(low * high)
            low, high = (low, middle) if self._secular(middle)[0] < 0 else (middle, high)
        _, kernel, m_inverse_v, gram = self._secular(high)
        axis = m_inverse_v @ np.linalg.solve(gram, kernel)
        return high, axis / np.linalg.norm(axis)

    def _secular(self, theta: float) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        """Return the least eigenpair of Z + (V^T M^-1 V)^-1, and M^-1 V and V^T M^-1 V."""
        inverse = 1 / (self.s - theta)
        m_inverse_v = inverse[:, None] * self.axes
        scaled_mean = inverse * self.mean
        m_inverse_v -= np.outer(
            scaled_mean, (self.mean @ m_inverse_v) / (1 + self.mean @ scaled_mean)
        )
        gram = self.axes.T @ m_inverse_v
        values, vectors = np.linalg.eigh(self.update + np.linalg.inv(gram))
        return float(values[0]), vectors[:, 0], m_inverse_v, gram


def saddle_direction(
    w: Float[np.ndarray, "K r"],
    zero: Bool[np.ndarray, " r"],
    inner: Float[np.ndarray, "K K"],
    certificate: float,
) -> Float[np.ndarray, "K r"] | None:
    """Return u a^T, a direction of negative curvature at a critical point; None if none is known.

    `zero` marks the coordinates in which every sample is zero, and a lies in their span. If
    W a = 0, the curvature along u a^T is lw - mu u^T Q u, where Q is `inner`. It is smallest for
    the top eigenvector u of Q, and negative iff the certificate exceeds 1 (as in Zhu et al. 2021,
    arXiv 2105.02375, for free features).
    """
    if not zero.any() or certificate <= 1 + 1e-7:
        return None
    _, scales, rows = np.linalg.svd(w[:, zero])
    if int((scales > 1e-6 * np.linalg.norm(w)).sum()) == int(zero.sum()):
        return None
    axis = np.zeros(w.shape[1])
    axis[zero] = rows[-1]
    return np.outer(np.linalg.eigh((inner + inner.T) / 2)[1][:, -1], axis)

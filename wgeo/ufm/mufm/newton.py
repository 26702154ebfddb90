"""Trust-region Newton method: preconditioned conjugate gradients, following negative curvature.

This is the method of Steihaug (1983). The quadratic model of the objective is minimized inside an
ellipsoid, a ball in the preconditioner's norm; along negative curvature, the step goes to its
boundary. This norm adapts to the problem, so that no constant here depends on units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float

Matrix = Float[np.ndarray, "K r"]

ROUNDING = 1e-14  # relative differences of the objective below this are rounding errors
ACCEPT, GOOD, BAD = 0.1, 0.75, 0.25  # ratio of actual to predicted reduction
INNER = 300  # largest number of iterations of conjugate gradients in a step


@runtime_checkable
class NewtonPoint(Protocol):
    """An objective and its derivatives at one point."""

    w: Matrix

    def value(self) -> float:
        """Return the objective."""

    def gradient(self) -> Matrix:
        """Return the gradient."""

    def hessian_product(self, v: Matrix) -> Matrix:
        """Return the product of the Hessian and `v`."""

    def preconditioner(self) -> Callable[[Matrix], Matrix]:
        """Return an approximate inverse of the Hessian; positive definite."""


P = TypeVar("P", bound=NewtonPoint)


@dataclass(frozen=True, eq=False)
class NewtonResult(Generic[P]):
    """The end of a Newton iteration.

    `decrement` is sqrt(g^T M g / F), with the objective F, its gradient g and the preconditioner M;
    it has no units. The next Newton step would lower F by about the fraction decrement^2 / 2.
    """

    point: P  # the last accepted point; up to rounding, the lowest
    decrement: float
    steps: int  # tried; a last one that ends the search because of rounding is not counted
    products: int  # Hessian products of all steps


def trust_region_newton(
    at: Callable[[Matrix], P], start: Matrix, *, tolerance: float, max_steps: int = 300
) -> NewtonResult[P]:
    """Minimize a positive objective from one start.

    Parameters
    ----------
    at : callable
        Returns the `NewtonPoint` at a matrix w.
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
        model = _Model(gradient, point.hessian_product, solve)
        move, reduction, boundary, iterations = model.minimize(radius, min(0.1, math.sqrt(size)))
        products += iterations
        trial = at(point.w + move)
        new_value = trial.value()
        slack = ROUNDING * abs(value)
        ratio = (
            (value - new_value + slack) / (reduction + slack) if np.isfinite(new_value) else -1.0
        )
        if ratio > GOOD and boundary:
            radius *= 3
        elif ratio < BAD:
            radius = 0.25 * min(radius, model.length)
        if ratio <= ACCEPT:
            if radius <= 1e-12 * math.sqrt(value):
                break
            continue
        new_gradient, solve = trial.gradient(), trial.preconditioner()
        before, size = size, _decrement(new_gradient, solve, new_value)
        if reduction <= slack and size > before / 2:
            break  # rounding: neither the objective nor its gradient decreases any more
        point, value, gradient = trial, new_value, new_gradient
    else:
        step = max_steps
    return NewtonResult(point, _decrement(gradient, point.preconditioner(), value), step, products)


def _decrement(gradient: Matrix, solve: Callable[[Matrix], Matrix], value: float) -> float:
    return math.sqrt(max(np.vdot(gradient, solve(gradient)), 0.0) / value)


@dataclass(eq=False)
class _Model:
    """The quadratic model of the objective around a point."""

    gradient: Matrix
    product: Callable[[Matrix], Matrix]
    solve: Callable[[Matrix], Matrix]
    length: float = 0.0  # of the last step, in the preconditioner's norm

    def minimize(self, radius: float, forcing: float) -> tuple[Matrix, float, bool, int]:
        """Return the step, its predicted reduction, whether it hits the boundary, and iterations.

        Conjugate gradients stop when the residual is at most `forcing` times the gradient.
        """
        residual = self.gradient
        move, image = np.zeros_like(residual), np.zeros_like(residual)
        z = self.solve(residual)
        first = rest = float(np.vdot(residual, z))
        direction = -z
        # <move, move>, <move, direction>, <direction, direction> in the preconditioner's norm
        mm, md, dd = 0.0, 0.0, rest
        boundary = False
        iterations = 0
        while iterations < INNER:
            iterations += 1
            image_of_direction = self.product(direction)
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
            z = self.solve(residual)
            rest, last = float(np.vdot(residual, z)), rest
            if rest <= forcing**2 * first:
                break
            direction = (rest / last) * direction - z
            md = (rest / last) * (md + length * dd)
            dd = rest + (rest / last) ** 2 * dd
        self.length = math.sqrt(max(mm, 0.0))
        reduction = -float(np.vdot(self.gradient, move)) - float(np.vdot(move, image)) / 2
        return move, reduction, boundary, iterations

"""Trust-region Newton: steps by conjugate gradients, preconditioned, negative curvature followed.

The method of Steihaug (1983): the quadratic model of the objective is minimised inside an ellipsoid
of the preconditioner's norm; where the model curves downward, to the ellipsoid's edge. A good
preconditioner makes the norm that of the problem itself, so that nothing here depends on units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float

Matrix = Float[np.ndarray, "K r"]

ROUNDING = 1e-14  # relative differences of the objective below this say nothing
ACCEPT, GOOD, BAD = 0.1, 0.75, 0.25  # actual by predicted reduction
INNER = 300  # conjugate gradients in a step, at most


@runtime_checkable
class Point(Protocol):
    """An objective at one place, with its derivatives."""

    w: Matrix

    def value(self) -> float:
        """The objective."""

    def gradient(self) -> Matrix:
        """Its gradient."""

    def hessian_product(self, v: Matrix) -> Matrix:
        """Its Hessian along `v`."""

    def preconditioner(self) -> Callable[[Matrix], Matrix]:
        """An approximate inverse of the Hessian; positive definite."""


P = TypeVar("P", bound=Point)


@dataclass(frozen=True, eq=False)
class Descent(Generic[P]):
    """Where a descent ended.

    Attributes
    ----------
    point
        The last point, the lowest but for rounding.
    decrement : float
        sqrt(g^T M g / F) of the gradient g and the preconditioner M: free of units; its square is
        about the share of the objective that Newton's next step would still gain, twice.
    steps, products : int
        Newton steps tried, and Hessian products taken for them.
    """

    point: P
    decrement: float
    steps: int
    products: int


def descend(
    at: Callable[[Matrix], P], start: Matrix, *, tolerance: float, max_steps: int = 300
) -> Descent[P]:
    """Minimise a positive objective from one start.

    Parameters
    ----------
    at : callable
        Returns the `Point` at a place.
    start : ndarray
    tolerance : float
        The decrement (see `Descent`) at which a point counts as critical.
    max_steps : int
    """
    point = at(start)
    value = point.value()
    radius = math.sqrt(2 * value)  # in the preconditioner's norm a step of this size gains about F
    gradient, solve = point.gradient(), point.preconditioner()
    size = _decrement(gradient, solve, value)
    products = 0
    for step in range(max_steps):
        if size <= tolerance:
            return Descent(point, size, step, products)
        model = _Model(gradient, point.hessian_product, solve)
        move, gain, edge, taken = model.minimise(radius, min(0.1, math.sqrt(size)))
        products += taken
        trial = at(point.w + move)
        reached = trial.value()
        slack = ROUNDING * abs(value)
        ratio = (value - reached + slack) / (gain + slack) if np.isfinite(reached) else -1.0
        if ratio > GOOD and edge:
            radius *= 3
        elif ratio < BAD:
            radius = 0.25 * min(radius, model.length)
        if ratio <= ACCEPT:
            if radius <= 1e-12 * math.sqrt(value):
                break
            continue
        fresh, solve = trial.gradient(), trial.preconditioner()
        before, size = size, _decrement(fresh, solve, reached)
        if gain <= slack and size > before / 2:
            break  # rounding: neither the objective nor its gradient falls any more
        point, value, gradient = trial, reached, fresh
    else:
        step = max_steps
    return Descent(point, _decrement(gradient, point.preconditioner(), value), step, products)


def _decrement(gradient: Matrix, solve: Callable[[Matrix], Matrix], value: float) -> float:
    return float(math.sqrt(max(np.vdot(gradient, solve(gradient)), 0.0) / value))


@dataclass(eq=False)
class _Model:
    """The quadratic model around a point."""

    gradient: Matrix
    product: Callable[[Matrix], Matrix]
    solve: Callable[[Matrix], Matrix]
    length: float = 0.0  # of the step found, in the preconditioner's norm

    def minimise(self, radius: float, forcing: float) -> tuple[Matrix, float, bool, int]:
        """Return the step, what the model gains by it, whether it ends at the edge, and products.

        Conjugate gradients stop when the residual has fallen to `forcing` of the gradient.
        """
        residual = self.gradient
        move, image = np.zeros_like(residual), np.zeros_like(residual)
        z = self.solve(residual)
        first = rest = float(np.vdot(residual, z))
        direction = -z
        # <move, move>, <move, direction>, <direction, direction> in the preconditioner's norm
        mm, md, dd = 0.0, 0.0, rest
        edge = False
        taken = 0
        while taken < INNER:
            taken += 1
            turned = self.product(direction)
            curvature = float(np.vdot(direction, turned))
            length = rest / curvature if curvature > 0 else 0.0
            far = mm + 2 * length * md + length**2 * dd
            edge = curvature <= 0 or bool(far >= radius**2)
            if edge:
                length = (math.sqrt(md**2 + dd * (radius**2 - mm)) - md) / dd
            move = move + length * direction
            image = image + length * turned
            mm += 2 * length * md + length**2 * dd
            residual = residual + length * turned
            if edge:
                break
            z = self.solve(residual)
            rest, last = float(np.vdot(residual, z)), rest
            if rest <= forcing**2 * first:
                break
            direction = (rest / last) * direction - z
            md = (rest / last) * (md + length * dd)
            dd = rest + (rest / last) ** 2 * dd
        self.length = float(math.sqrt(max(mm, 0.0)))
        gain = -float(np.vdot(self.gradient, move)) - float(np.vdot(move, image)) / 2
        return move, gain, edge, taken

"""Sinkhorn: entropic transport in the log domain, annealed, accelerated and debiased."""

from __future__ import annotations

import math
import operator
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from ..arrays.checks import as_count, as_float, pick_device
from ..errors import ArgumentError, ConvergenceError
from ..runtime import processes
from .annealing import (
    ENGINES,
    SCALING,
    Budget,
    SinkhornState,
    anneal,
    iterate,
    require_converged,
    require_epsilon,
    smallest_epsilon,
    solve_itself,
)
from .fused import uses_fused
from .kernel import Kernel
from .plans import MAX_ENTRIES
from .point_clouds import PointClouds
from .result import TransportResult
from .rounding import Bounds, compute_bounds, couple_in_order, with_plan
from .tiles import full_precision

_NORMAL_RANGE = 1e16  # clouds with total variance above this, or below its inverse, are rescaled
_SELF_ITERATIONS = 1000  # maximum number between a cloud and itself; about 15 are needed
_FIRST_AUTO_EPSILON = 0.25  # as a fraction of the scale, for epsilon="auto"
_TOO_LARGE = (
    f"the rounded plan has more than {MAX_ENTRIES:,} entries; it has fewer at a smaller epsilon"
)


@dataclass(frozen=True)
class Sinkhorn:
    r"""Entropic optimal transport, with an interval that contains the unregularized W2.

    .. math:: OT_\varepsilon = \min_P \sum_{ij} P_{ij} \|x_i - y_j\|^2
              + \varepsilon\, KL(P \,|\, a \otimes b)

    The problem is solved in the log domain (Cuturi 2013; Peyre, Cuturi 2019, Section 4.4) by
    accelerated iterations, while epsilon is lowered step by step. Memory grows with (n + m) d, not
    with n m. (Small problems store all products x_i.y_j: at most 128 MiB, or 1 GiB on a GPU.)

    ``cost`` is the cost of the cheapest feasible coupling found, which is ``upper^2`` up to
    rounding. One candidate is the plan rounded to exact marginals (Altschuler, Weed, Rigollet
    2017). For clouds of equal size and uniform weights, the given pairing and a permutation derived
    from the plan are also candidates. ``lower`` comes from c-transforms of the potentials. Both
    bounds hold for W2 itself, at any epsilon. ``coupling`` is None if the rounded plan is the
    cheapest candidate and has more than 2^22 (4.2 million) entries that are not negligible.

    ``divergence`` is the debiased Sinkhorn divergence ``OT(x, y) - OT(x, x)/2 - OT(y, y)/2`` (Feydy
    et al. 2019) at a given epsilon: an estimate of W2^2, not a bound. It is None for
    ``epsilon="auto"``, whose epsilon can be far too large for a good estimate.

    Parameters
    ----------
    epsilon : float or "auto"
        Regularization strength, as a fraction of a scale. After removing the means, the scale is
        the mean squared displacement of the pairing (row i with row i by default), or the total
        variance tr cov x + tr cov y if that is less. ``stats["epsilon"]`` is in the units of
        ``||x - y||^2``; packages whose cost is ``||x - y||^2 / 2`` use half this value. ``"auto"``
        lowers epsilon until the interval is within `tolerance`, the iterations are used up, or
        float64 cannot resolve a smaller epsilon. It keeps the smallest epsilon that converged;
        ``stats["epsilon_chosen"]`` is the reason.
    unit : "scale" or "absolute"
        Unit of `epsilon` if it is a number.
    tolerance : float
        Largest relative width of the interval of a certified result; positive.
    marginal_tolerance : float
        L1 error of the column marginal at which an epsilon has converged; row marginals are exact.
    iterations : int
        Maximum number of iterations, each a pass over all pairs, at all epsilons together. The
        bounds and the divergence take additional passes.
    scaling : float
        Factor of sqrt(epsilon) from one epsilon to the next, between 0 and 1.
    debias : bool
        Compute ``divergence`` if `epsilon` is a number (two more problems, which are fast).
    engine : "wgeo", "auto", "fused", "geomloss" or "flash"
        Implementation of the iterations. ``"wgeo"`` processes blocks of rows, on any device.
        ``"fused"`` uses torch's fused attention (Dong et al. 2024, "Flex Attention"), which stores
        no blocks. It raises an error unless it runs on a CUDA device and agrees with ``"wgeo"`` on
        a sample to 1e-5. Blocks are still used for more than 256 features, and at epsilons for
        which float32 (without TF32) does not suffice. ``"auto"`` chooses ``"fused"`` if it works
        here and there are more than 2^27 pairs, otherwise ``"wgeo"``. ``"geomloss"`` and
        ``"flash"`` call other packages, and need a number as `epsilon`. With every engine, the
        interval is computed in float64. ``stats["engine"]`` is the engine that was used.
    on_failure : "raise" or "return"
        What to do if the marginal tolerance is not reached. A returned interval still contains W2,
        and ``stats["converged"]`` is False.
    device : str
        ``auto`` (CUDA if available), ``cpu`` or ``cuda``; the same code runs on either.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(50, 2))
    >>> r = wgeo.wasserstein(x, x + [3.0, 4.0], solver=wgeo.Sinkhorn(epsilon=0.05))
    >>> r.lower <= 5 <= r.upper, round(r.divergence, 2)
    (True, 25.0)
    """

    epsilon: float | Literal["auto"] = "auto"
    unit: Literal["scale", "absolute"] = "scale"
    tolerance: float = 1e-3
    marginal_tolerance: float = 1e-3
    iterations: int = 500
    scaling: float = SCALING
    debias: bool = True
    engine: Literal["wgeo", "auto", "fused", "geomloss", "flash"] = "wgeo"
    on_failure: Literal["raise", "return"] = "raise"
    device: str = "auto"
    name: ClassVar[str] = "sinkhorn"

    def __post_init__(self) -> None:
        auto = isinstance(self.epsilon, str) and self.epsilon == "auto"
        if not auto:
            epsilon = as_float(self.epsilon, "epsilon")
            if not 0 < epsilon < math.inf:
                raise ArgumentError(f'epsilon must be "auto" or a positive number: {epsilon!r}.')
            object.__setattr__(self, "epsilon", epsilon)
        as_count(self.iterations, "iterations", 1)
        for name, allowed in (
            ("unit", ("scale", "absolute")),
            ("engine", ("wgeo", "auto", "fused", *ENGINES)),
            ("on_failure", ("raise", "return")),
        ):
            if getattr(self, name) not in allowed:
                raise ArgumentError(
                    f"{name} must be one of {allowed}, not {getattr(self, name)!r}."
                )
        for name in ("tolerance", "marginal_tolerance"):
            if not as_float(getattr(self, name), name) > 0:
                raise ArgumentError(f"{name} must be positive, not {getattr(self, name)!r}.")
        if not 0 < as_float(self.scaling, "scaling") < 1:
            raise ArgumentError(f"scaling must lie between 0 and 1, not {self.scaling}.")
        if auto and self.engine in ENGINES:
            raise ArgumentError(f'engine {self.engine!r} needs a number for epsilon, not "auto".')

    def solve(
        self,
        x: Float[torch.Tensor, "n d"],
        y: Float[torch.Tensor, "m d"],
        a: Float[np.ndarray, " n"] | None = None,
        b: Float[np.ndarray, " m"] | None = None,
        coupling: Int[np.ndarray, " n"] | None = None,
    ) -> TransportResult:
        """Return an interval for W2 and the Sinkhorn divergence (`wasserstein`).

        Raises
        ------
        ArgumentError
            Float64 cannot resolve `epsilon` for these clouds, or the device cannot be used.
        ConvergenceError
            The marginal tolerance was not reached, and ``on_failure`` is "raise".
        DependencyError
            The engine's package is not installed, its device is not available, torch cannot
            compile it, or it does not agree with ``"wgeo"`` on a sample.
        """
        start_time = time.perf_counter()
        clouds = PointClouds.of(x, y, a, b, coupling, pick_device(self.device))
        if (
            clouds.total_variance > 0
            and not 1 / _NORMAL_RANGE < clouds.total_variance < _NORMAL_RANGE
        ):
            return self._rescaled(clouds, a, b, coupling)
        scale = min(clouds.pairing_cost - clouds.translation_cost, clouds.total_variance)
        if processes.on_rank_zero(partial(operator.le, scale, clouds.rounding)):
            return self._translation_result(clouds, start_time)
        budget = Budget(self.iterations)
        with full_precision:
            fused = uses_fused(self.engine, clouds)
            find = self._auto if self.epsilon == "auto" else self._at_epsilon
            solution = find(clouds, scale, budget, fused)
            state = solution.state
            bounds = with_plan(clouds, solution.bounds or compute_bounds(clouds, state))
            self_value = self._self_transport(clouds, state.eps) if self._debiases else None
        return clouds.result(
            lower=bounds.lower,
            upper=bounds.upper,
            solver=self.name,
            seconds=time.perf_counter() - start_time,
            tolerance=self.tolerance,
            coupling=bounds.coupling,
            potentials=bounds.potentials,
            divergence=None
            if self_value is None
            else max(clouds.translation_cost + state.value - self_value, 0.0),
            stats={
                **_epsilon_stats(clouds, state.eps, scale),
                "epsilon_chosen": solution.chosen,
                "converged": solution.converged,
                "iterations": budget.spent,
                "engine": self._engine_used(fused),
                "row_error": bounds.plan.row_error,
                "column_error": bounds.plan.column_error,
                "entropic_value": clouds.translation_cost + state.value,
                "entropic_cost": clouds.translation_cost + bounds.plan.entropic_cost,
                "primal_dual_gap": bounds.upper - bounds.lower,
                "upper_from": bounds.upper_from,
                **({} if bounds.coupling is not None else {"no_plan": _TOO_LARGE}),
            },
        )

    def _engine_used(self, fused: bool) -> str:
        return self.engine if self.engine in ENGINES else "fused" if fused else "wgeo"

    @property
    def _debiases(self) -> bool:
        return self.debias and self.epsilon != "auto"

    def _rescaled(
        self,
        clouds: PointClouds,
        a: Float[np.ndarray, " n"] | None,
        b: Float[np.ndarray, " m"] | None,
        coupling: Int[np.ndarray, " n"] | None,
    ) -> TransportResult:
        """Solve for rescaled clouds and scale back, by powers of two, which causes no rounding.

        Without it, products x.y and 1 / epsilon could leave the range of float32.
        """
        factor = 2.0 ** -round(math.log2(clouds.total_variance) / 2)
        absolute = self.epsilon != "auto" and self.unit == "absolute"
        solver = replace(self, epsilon=self.epsilon * factor**2) if absolute else self  # type: ignore[operator]
        x, y = clouds.x.double() * factor, clouds.y.double() * factor
        return rescale_result(solver.solve(x, y, a, b, coupling), factor)

    def _at_epsilon(
        self, clouds: PointClouds, scale: float, budget: Budget, fused: bool
    ) -> _Solution:
        """Solve at the given epsilon, with the chosen engine."""
        assert self.epsilon != "auto"
        eps = self.epsilon * (scale if self.unit == "scale" else 1.0)
        require_epsilon(clouds, eps)
        if self.engine not in ENGINES:
            settings = (eps, self.marginal_tolerance, self.scaling, budget)
            state, converged = anneal(clouds, scale, *settings, fused=fused)
        else:
            g = ENGINES[self.engine](clouds, eps, self.scaling)
            state = iterate(Kernel(clouds), g, eps)
            converged = state.error <= self.marginal_tolerance
        chosen = "as given" if state.eps == eps else "larger than given: the iterations ended here"
        return self._require_convergence(_Solution(state, None, converged, chosen), scale, budget)

    def _auto(self, clouds: PointClouds, scale: float, budget: Budget, fused: bool) -> _Solution:
        """Lower epsilon while the iterations converge and the interval is not yet narrow enough."""
        floor = smallest_epsilon(clouds)
        eps = max(_FIRST_AUTO_EPSILON * scale, floor)
        best, g = None, None
        while True:
            settings = (eps, self.marginal_tolerance, self.scaling, budget)
            state, converged = anneal(clouds, scale, *settings, g, fused)
            if not converged:
                if best is None:
                    return self._require_convergence(
                        _Solution(state, None, False, "none"), scale, budget
                    )
                return replace(best, chosen="smallest that converged within the iterations")
            bounds = compute_bounds(clouds, state).tighten(best.bounds if best else None)
            needed = (1 - self.tolerance) * math.sqrt(bounds.upper)
            narrow = processes.on_rank_zero(
                partial(operator.ge, math.sqrt(max(bounds.lower, 0)), needed)
            )
            if narrow or eps <= floor:
                why = "interval within tolerance" if narrow else "smallest that float64 resolves"
                return _Solution(state, bounds, True, why)
            best, g = _Solution(state, bounds, True, ""), state.completed
            eps = max(eps * self.scaling**2, floor)

    def _require_convergence(self, solution: _Solution, scale: float, budget: Budget) -> _Solution:
        """Return the solution if it converged or ``on_failure`` is "return"; else raise."""
        if solution.converged or self.on_failure == "return":
            return solution
        eps, spent = solution.state.eps, budget.spent
        other = self.engine in ENGINES
        effort = f"engine {self.engine!r}" if other else f"{spent} passes"
        remedy = "a scaling closer to 1" if other else "more iterations"
        raise ConvergenceError(
            f"Sinkhorn's column marginal is off by {solution.state.error:.2g} (L1; tolerance "
            f"{self.marginal_tolerance:.2g}) after {effort}, at epsilon = {eps:.3g} "
            f"({eps / scale:.3g} of the scale). Try a larger epsilon, {remedy}, "
            '`epsilon="auto"`, or `on_failure="return"` for the interval so far.'
        )

    def _self_transport(self, clouds: PointClouds, eps: float) -> float | None:
        """Return OT(x, x)/2 + OT(y, y)/2, or None if not converged and `on_failure` is "return"."""
        settings = (eps, self.marginal_tolerance)
        both = [solve_itself(z, *settings, Budget(_SELF_ITERATIONS)) for z in clouds.self_problems]
        if self.on_failure == "return" and not all(converged for _, converged in both):
            return None
        return sum(require_converged(*itself, "a cloud and itself").value for itself in both) / 2

    def _translation_result(self, clouds: PointClouds, start_time: float) -> TransportResult:
        """Return the result if the pairing is a translation, or each cloud's points are equal."""
        f, g = clouds.original_potentials(torch.zeros_like(clouds.a), torch.zeros_like(clouds.b))
        pairing = clouds.pairing is not None
        lower = clouds.translation_cost - clouds.rounding
        product = clouds.translation_cost + clouds.total_variance + clouds.rounding
        upper = min(clouds.pairing_cost, product)
        return clouds.result(
            lower=lower,
            upper=upper,
            solver=self.name,
            seconds=time.perf_counter() - start_time,
            tolerance=self.tolerance,
            coupling=clouds.pairing
            if pairing
            else csr_array(couple_in_order(clouds, clouds.a, clouds.b)),
            potentials=(f, g),
            divergence=max(clouds.translation_cost, 0.0) if self._debiases else None,
            stats={
                **_epsilon_stats(clouds, 0.0, clouds.total_variance),
                "epsilon_chosen": "none needed: one cloud is the other translated",
                "converged": True,
                "iterations": 0,
                "engine": self._engine_used(fused=False),
                "row_error": 0.0,
                "column_error": 0.0,
                "entropic_value": clouds.translation_cost,
                "entropic_cost": clouds.translation_cost,
                "primal_dual_gap": upper - lower,
                "upper_from": "pairing" if pairing else "line",
            },
        )


def _epsilon_stats(clouds: PointClouds, eps: float, scale: float) -> dict[str, Any]:
    """Return epsilon and the scale with which it is compared."""
    return {
        "epsilon": eps,
        "epsilon_share": eps / scale if eps else 0.0,
        "scale": scale,
        "scale_is": "spread" if scale == clouds.total_variance else "mean squared displacement",
    }


_COST_STATS = ("epsilon", "scale", "entropic_value", "entropic_cost", "primal_dual_gap")


def rescale_result(solution: TransportResult, factor: float) -> TransportResult:
    """Return the result for the original clouds from that for clouds multiplied by `factor`."""
    square = factor**2
    stats = {k: v / square if k in _COST_STATS else v for k, v in solution.stats.items()}
    potentials = solution.potentials and (
        solution.potentials[0] / square,
        solution.potentials[1] / square,
    )
    return replace(
        solution,
        cost=solution.cost / square,
        lower=solution.lower / factor,
        upper=solution.upper / factor,
        potentials=potentials,
        divergence=None if solution.divergence is None else solution.divergence / square,
        stats=stats,
    )


@dataclass(frozen=True, eq=False)
class _Solution:
    """Potentials at the chosen epsilon, and how it was chosen."""

    state: SinkhornState
    bounds: Bounds | None
    converged: bool
    chosen: str

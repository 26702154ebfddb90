"""Sinkhorn: entropic transport in the log domain, annealed, streamed, debiased, differentiable."""

from __future__ import annotations

import math
import operator
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int

from ..arrays.checks import pick_device
from ..errors import ArgumentError, ConvergenceError
from ..runtime import processes
from .annealing import (
    SCALING,
    Budget,
    Potentials,
    anneal,
    iterate,
    require_converged,
    require_epsilon,
    smallest_epsilon,
    solve_itself,
)
from .engines import ENGINES
from .kernel import Kernel, full_precision
from .clouds import PointClouds
from .result import TransportResult
from .rounding import Bounds, bound

_ORDINARY = 1e16  # mean squared norm beyond which, or below its inverse, clouds are scaled
_OWN = 1000  # passes at most for a cloud against itself, which takes about fifteen
_AUTO_FROM = 0.25  # epsilon="auto" bounds W2 from this share of the scale downwards


@dataclass(frozen=True)
class Sinkhorn:
    r"""Entropic optimal transport, with an interval that contains the unregularised W2.

    .. math:: OT_\varepsilon = \min_P \sum_{ij} P_{ij} \|x_i - y_j\|^2
              + \varepsilon\, KL(P \,|\, a \otimes b)

    solved in the log domain (Cuturi 2013; Peyre, Cuturi 2019, Section 4.4) by accelerated
    iterations while epsilon is lowered step by step, a block of rows at a time: memory grows with
    (n + m) d, not with n m (small problems keep their products x.y^T, at most 128 MiB).

    The answer's ``cost`` is that of the cheapest *feasible* coupling at hand, so it equals
    ``upper^2``: the plan rounded to exact marginals (Altschuler, Weed, Rigollet 2017), for equal
    uniform clouds also a permutation read off the plan, or the pairing given. ``lower`` comes from
    hard c-transforms of the potentials. Both are evaluated in float64 and hold for W2 itself, at
    any epsilon. ``divergence`` is another thing, the debiased Sinkhorn divergence
    ``OT(x, y) - OT(x, x)/2 - OT(y, y)/2`` (Feydy et al. 2019), an estimate of W2^2 without a bound.

    Parameters
    ----------
    epsilon : float or "auto"
        Temperature, as a share of a scale: the mean squared displacement of the pairing (row i
        with row i by default), else the cost's spread tr cov x + tr cov y, both after removing the
        means. ``stats["epsilon"]`` is the same in absolute units, those of ||x - y||^2 (the
        convention ||x - y||^2 / 2 of other packages halves it). ``"auto"`` lowers it until the
        interval is within `tolerance`, the iterations are spent, or rounding would show, keeps
        the smallest that converged, and says which it was and why (``stats["epsilon_chosen"]``).
    unit : "scale" or "absolute"
        What a number for `epsilon` means.
    tolerance : float
        Relative width of the interval at which a result is certified.
    marginal_tolerance : float
        L1 error of the column marginal at which an epsilon has converged; rows hold exactly.
    iterations : int
        Passes over all pairs at most.
    scaling : float
        Each step of the annealing multiplies sqrt(epsilon) by it.
    debias : bool
        Compute ``divergence`` (two more, quick, problems).
    engine : "wgeo", "geomloss" or "flash"
        Who iterates. The interval and the marginal errors are wgeo's own in any case.
    on_failure : "raise" or "return"
        What to do where the marginals were not reached. A returned result is still an interval
        that contains W2, with ``stats["converged"]`` False.
    device : str
        ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``; the same code runs on either.
    """

    epsilon: float | Literal["auto"] = "auto"
    unit: Literal["scale", "absolute"] = "scale"
    tolerance: float = 1e-3
    marginal_tolerance: float = 1e-3
    iterations: int = 500
    scaling: float = SCALING
    debias: bool = True
    engine: Literal["wgeo", "geomloss", "flash"] = "wgeo"
    on_failure: Literal["raise", "return"] = "raise"
    device: str = "auto"
    name: ClassVar[str] = "sinkhorn"

    def __post_init__(self) -> None:
        auto = self.epsilon == "auto"
        if not auto and not (isinstance(self.epsilon, int | float) and 0 < self.epsilon < math.inf):
            raise ArgumentError(f'epsilon must be "auto" or a positive number: {self.epsilon!r}.')
        for name, allowed in (
            ("unit", ("scale", "absolute")),
            ("engine", ("wgeo", *ENGINES)),
            ("on_failure", ("raise", "return")),
        ):
            if getattr(self, name) not in allowed:
                raise ArgumentError(
                    f"{name} must be one of {allowed}, not {getattr(self, name)!r}."
                )
        if not (self.tolerance > 0 and self.marginal_tolerance > 0 and self.iterations > 0):
            raise ArgumentError("tolerance, marginal_tolerance and iterations must be positive.")
        if not 0 < self.scaling < 1:
            raise ArgumentError(f"scaling must lie between 0 and 1, not {self.scaling}.")
        if auto and self.engine != "wgeo":
            raise ArgumentError(f'engine {self.engine!r} needs a number for epsilon, not "auto".')

    def solve(
        self,
        x: Float[torch.Tensor, "n d"],
        y: Float[torch.Tensor, "m d"],
        a: Float[np.ndarray, " n"] | None = None,
        b: Float[np.ndarray, " m"] | None = None,
        coupling: Int[np.ndarray, " n"] | None = None,
        potentials: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> TransportResult:
        """Return an interval for W2 and the Sinkhorn divergence (`wasserstein`).

        `potentials` are of no use to it: centred clouds and a large epsilon begin well at zero.

        Raises
        ------
        ConvergenceError
            The marginals were not reached and ``on_failure`` is "raise".
        DependencyError
            The engine's package or device is missing.
        """
        start_time = time.perf_counter()
        clouds = PointClouds.of(x, y, a, b, coupling, pick_device(self.device))
        if clouds.total_variance > 0 and not 1 / _ORDINARY < clouds.total_variance < _ORDINARY:
            return self._rescaled(clouds, a, b, coupling)
        scale = min(clouds.pairing_cost - clouds.translation_cost, clouds.total_variance)
        if processes.on_rank_zero(partial(operator.le, scale, clouds.rounding)):
            return self._translation(clouds, start_time)
        budget = Budget(self.iterations)
        with full_precision:
            found = self._auto(clouds, scale, budget) if self.epsilon == "auto" else None
            found = found or self._at(clouds, scale, budget)
            state, bounds = found.state, found.bounds or bound(clouds, found.state)
            own = self._own(clouds, state.eps) if self.debias else None
        return clouds.result(
            lower=bounds.lower,
            upper=bounds.upper,
            solver=self.name,
            seconds=time.perf_counter() - start_time,
            tolerance=self.tolerance,
            coupling=bounds.coupling,
            potentials=bounds.potentials,
            divergence=None if own is None else clouds.translation_cost + state.value - own,
            stats={
                "epsilon": state.eps,
                "epsilon_share": state.eps / scale,
                "epsilon_chosen": found.chosen,
                "scale": scale,
                "scale_is": "spread" if scale == clouds.total_variance else "mean squared displacement",
                "converged": found.converged,
                "iterations": budget.spent,
                "engine": self.engine,
                "row_error": bounds.plan.row_error,
                "column_error": bounds.plan.column_error,
                "entropic_value": clouds.translation_cost + state.value,
                "entropic_cost": clouds.translation_cost + bounds.plan.entropic_cost,
                "primal_dual_gap": bounds.upper - bounds.lower,
                "upper_from": bounds.upper_from,
            },
        )

    def _rescaled(
        self,
        clouds: PointClouds,
        a: Float[np.ndarray, " n"] | None,
        b: Float[np.ndarray, " m"] | None,
        coupling: Int[np.ndarray, " n"] | None,
    ) -> TransportResult:
        """Solve for clouds of ordinary size and scale back: by powers of two, so without rounding.

        Exponentials of costs over epsilon leave float32's range long before the clouds do.
        """
        factor = 2.0 ** -round(math.log2(clouds.total_variance) / 2)
        absolute = self.epsilon != "auto" and self.unit == "absolute"
        solver = replace(self, epsilon=self.epsilon * factor**2) if absolute else self  # type: ignore[operator]
        x, y = clouds.x.double() * factor, clouds.y.double() * factor
        return scaled_back(solver.solve(x, y, a, b, coupling), factor)

    def _at(self, clouds: PointClouds, scale: float, budget: Budget) -> _Found:
        """Solve at the epsilon asked for, by whichever engine."""
        assert self.epsilon != "auto"
        eps = self.epsilon * (scale if self.unit == "scale" else 1.0)
        require_epsilon(clouds, eps)
        if self.engine == "wgeo":
            asked = (eps, self.marginal_tolerance, self.scaling, budget)
            state, converged = anneal(clouds, scale, *asked)
        else:
            g = ENGINES[self.engine](clouds, eps, self.scaling)
            state = iterate(Kernel(clouds), g, eps)
            converged = state.error <= self.marginal_tolerance
        return self._checked(_Found(state, None, converged, "as given"), scale, budget)

    def _auto(self, clouds: PointClouds, scale: float, budget: Budget) -> _Found:
        """Lower epsilon while it converges and the interval is not yet narrow enough."""
        floor = smallest_epsilon(clouds)
        eps = max(_AUTO_FROM * scale, floor)
        best, g = None, None
        while True:
            asked = (eps, self.marginal_tolerance, self.scaling, budget)
            state, converged = anneal(clouds, scale, *asked, g)
            if not converged:
                if best is None:
                    return self._checked(_Found(state, None, False, "none"), scale, budget)
                return replace(best, chosen="smallest that converged within the iterations")
            bounds = bound(clouds, state).tightened(best.bounds if best else None)
            least = (1 - self.tolerance) * math.sqrt(bounds.upper)
            narrow = processes.on_rank_zero(
                partial(operator.ge, math.sqrt(max(bounds.lower, 0)), least)
            )
            if narrow or eps <= floor:
                why = "interval within tolerance" if narrow else "smallest that float64 resolves"
                return _Found(state, bounds, True, why)
            best, g = _Found(state, bounds, True, ""), state.completed
            eps = max(eps * self.scaling**2, floor)

    def _checked(self, found: _Found, scale: float, budget: Budget) -> _Found:
        """Raise unless converged, or asked to return what there is."""
        if found.converged or self.on_failure == "return":
            return found
        eps, spent = found.state.eps, budget.spent
        did = f"{spent} passes" if self.engine == "wgeo" else f"engine {self.engine!r}"
        more = "more iterations" if self.engine == "wgeo" else "a scaling closer to 1"
        raise ConvergenceError(
            f"Sinkhorn's column marginal is off by {found.state.error:.2g} (L1; asked: "
            f"{self.marginal_tolerance:.2g}) after {did}, at epsilon = {eps:.3g} "
            f'({eps / scale:.3g} of the scale). Try a larger epsilon, {more}, epsilon="auto", '
            'or on_failure="return" to look at the interval it has.'
        )

    def _own(self, clouds: PointClouds, eps: float) -> float:
        """What debiasing takes away; blind to translations, so centring is exact here too."""
        both = [
            require_converged(
                *solve_itself(twin, eps, self.marginal_tolerance, Budget(_OWN)),
                "a cloud and itself",
            )
            for twin in clouds.self_problems
        ]
        return sum(state.value for state in both) / 2

    def _translation(self, clouds: PointClouds, start_time: float) -> TransportResult:
        """One cloud is the other translated: the pairing is optimal and nothing is left to do."""
        f, g = clouds.original_potentials(torch.zeros_like(clouds.a), torch.zeros_like(clouds.b))
        return clouds.result(
            lower=clouds.translation_cost - clouds.rounding,
            upper=min(clouds.pairing_cost, clouds.translation_cost + clouds.total_variance + clouds.rounding),
            solver=self.name,
            seconds=time.perf_counter() - start_time,
            tolerance=self.tolerance,
            coupling=clouds.pairing,
            potentials=(f, g),
            divergence=max(clouds.translation_cost, 0.0) if self.debias else None,
            stats={
                "epsilon": 0.0,
                "epsilon_chosen": "none needed: one cloud is the other translated",
                "converged": True,
                "iterations": 0,
                "engine": self.engine,
                "row_error": 0.0,
                "column_error": 0.0,
                "upper_from": "pairing" if clouds.pairing is not None else "product",
            },
        )


_OF_COST = ("epsilon", "scale", "entropic_value", "entropic_cost", "primal_dual_gap")


def scaled_back(found: TransportResult, factor: float) -> TransportResult:
    """The answer for clouds that were multiplied by `factor` before they were given."""
    square = factor**2
    stats = {k: v / square if k in _OF_COST else v for k, v in found.stats.items()}
    potentials = found.potentials and (found.potentials[0] / square, found.potentials[1] / square)
    return replace(
        found,
        cost=found.cost / square,
        lower=found.lower / factor,
        upper=found.upper / factor,
        potentials=potentials,
        divergence=None if found.divergence is None else found.divergence / square,
        stats=stats,
    )


@dataclass(frozen=True, eq=False)
class _Found:
    """Potentials at the epsilon settled on, and how it was."""

    state: Potentials
    bounds: Bounds | None
    converged: bool
    chosen: str

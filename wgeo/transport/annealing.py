"""Accelerated Sinkhorn iterations, with epsilon lowered step by step, and those of other packages.

Let f(g) be the softmin of g. The semi-dual ``D(g) = <f(g), a> + <g, b>`` is concave and has the
gradient ``b - column mass``; a Sinkhorn iteration is one ascent step on D. At small epsilon,
Anderson acceleration reduces the number of passes by a factor of about ten. If an extrapolation
fails, D decreases.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float

from ..errors import ArgumentError, ConvergenceError, DependencyError
from ..runtime import processes
from .fused import FusedKernel
from .kernel import Kernel
from .point_clouds import UNIT_ROUNDOFF, PointClouds

_PAST_STEPS = 16  # number of past steps that an extrapolation uses
SCALING = 0.5  # factor of sqrt(epsilon) from one step of the annealing to the next
_LOOSE_TOLERANCE = 0.1  # L1 marginal error that suffices at an intermediate epsilon


@dataclass
class Budget:
    """A limit on the number of iterations; the last pass at each epsilon is not counted."""

    left: int
    spent: int = 0

    def take(self) -> bool:
        """Count an iteration; return False if none is left."""
        if self.left <= 0:
            return False
        self.left -= 1
        self.spent += 1
        return True


@dataclass(frozen=True, eq=False)
class SinkhornState:
    """Potentials after an iteration at one epsilon.

    ``error`` is the L1 error of the column marginal, and ``log_ratio`` the logarithm of each
    column's mass divided by b_j. ``value`` is the semi-dual; it is OT_eps if the marginal is exact.
    """

    f: Float[torch.Tensor, " n"]
    g: Float[torch.Tensor, " m"]
    log_ratio: Float[torch.Tensor, " m"]
    eps: float
    error: float
    value: float

    @property
    def completed(self) -> Float[torch.Tensor, " m"]:
        """g after the second half of the iteration: the plain Sinkhorn step."""
        return self.g - self.eps * self.log_ratio


@dataclass
class _Anderson:
    """Anderson acceleration (type II) of the plain step ``g <- state.completed``.

    Norms are weighted by `weights`. If the semi-dual decreases or is NaN, the extrapolation failed,
    and the last plain step is taken instead.
    """

    weights: Float[torch.Tensor, " m"]
    points: list[torch.Tensor] = field(default_factory=list)
    steps: list[torch.Tensor] = field(default_factory=list)
    plain: Float[torch.Tensor, " m"] | None = None
    value: float = -math.inf

    def __call__(self, state: SinkhornState) -> Float[torch.Tensor, " m"]:
        """Return the next g."""
        plain, least = self.plain, self.value - 1e-12 * abs(self.value)
        if plain is not None and not state.value >= least:
            self.points, self.steps, self.plain = [], [], None
            return plain
        self.plain, self.value = state.completed, state.value
        point, step = state.g, self.plain - state.g
        self.points = [*self.points[-_PAST_STEPS:], point]
        self.steps = [*self.steps[-_PAST_STEPS:], step]
        if len(self.points) == 1:
            return point + step
        point_differences = torch.stack(self.points).diff(dim=0).T
        step_differences = torch.stack(self.steps).diff(dim=0).T
        weighted = step_differences * self.weights[:, None]
        # Without scaling, old steps would dominate: they are larger by orders of magnitude.
        size = weighted.norm(dim=0).clamp_(min=torch.finfo(weighted.dtype).tiny)
        q, r = torch.linalg.qr(weighted / size)
        # On the CPU, because the matrix is small; a GPU would take longer.
        inverse = torch.linalg.pinv(r.cpu(), rtol=1e-10).to(r.device)
        mix = inverse @ (q.T @ (step * self.weights)) / size
        return point + step - (point_differences + step_differences) @ mix


def converge(
    kernel: Kernel,
    g: Float[torch.Tensor, " m"],
    eps: float,
    tolerance: float,
    budget: Budget,
    update: Callable[[SinkhornState], torch.Tensor] | None = None,
) -> tuple[SinkhornState, bool]:
    """Iterate at one epsilon until the L1 error of the column marginal is at most `tolerance`.

    `update` returns the next g; accelerated iterations are the default. Return the last iterate,
    and whether it converged within the budget.
    """
    update = _Anderson(kernel.clouds.b.sqrt()) if update is None else update
    while True:
        state = iterate(kernel, g, eps)
        if state.error <= tolerance or not budget.take():
            return state, state.error <= tolerance
        g = update(state)


def iterate(kernel: Kernel, g: Float[torch.Tensor, " m"], eps: float) -> SinkhornState:
    """Make one pass: the softmin of g, and the marginal error of the plan."""
    clouds = kernel.clouds
    f, log_ratio = kernel.softmin(g, eps)
    error = (clouds.b * log_ratio.expm1()).abs().sum()
    # One transfer instead of two, since each transfer waits for the GPU.
    both = torch.stack((error, clouds.a @ f + clouds.b @ g))
    # Control flow depends on both, so all processes need exactly the same values.
    error, value = processes.on_rank_zero(both.tolist)
    return SinkhornState(f, g, log_ratio, eps, error, value)


def anneal(
    clouds: PointClouds,
    scale: float,
    eps: float,
    tolerance: float,
    scaling: float,
    budget: Budget,
    g: Float[torch.Tensor, " m"] | None = None,
    fused: bool = False,
) -> tuple[SinkhornState, bool]:
    """Solve at `eps`; without an initial potential `g`, lower epsilon to `eps` step by step.

    The first epsilon is then about the geometric mean of `scale` and the total variance, and the
    first g is 0, the optimum of equal centered clouds in the limit of a small epsilon. Larger
    epsilons have a looser tolerance. If `fused`, steps in float32 use `FusedKernel`.
    """
    steps = [eps]
    if g is None:
        g = torch.zeros_like(clouds.b)
        start = math.sqrt(scale * clouds.total_variance)
        while steps[0] < start:
            steps.insert(0, steps[0] / scaling**2)
    for step in steps:
        step_tolerance = tolerance if step == eps else max(tolerance, _LOOSE_TOLERANCE)
        dtype = pick_dtype(clouds, step, step_tolerance)
        by_attention = fused and dtype is torch.float32
        kernel = FusedKernel(clouds) if by_attention else Kernel(clouds, dtype)
        state, converged = converge(kernel, g, step, step_tolerance, budget)
        if by_attention and step == eps:
            # The float64 kernel decides whether this has converged, and goes on if not.
            state, converged = converge(Kernel(clouds), state.g, step, step_tolerance, budget)
        if not converged:
            break
        g = state.completed
    return state, converged and step == eps


def pick_dtype(clouds: PointClouds, eps: float, tolerance: float) -> torch.dtype:
    """Return float32 if its rounding of ``x.y / eps`` is small compared with the tolerance."""
    terms = clouds.radius**2 / eps + 16  # rounding of the exponent, and of sums of exponentials
    rounding = 4 * (torch.finfo(torch.float32).eps / 2) * terms
    return torch.float32 if rounding <= 0.1 * tolerance else torch.float64


def smallest_epsilon(clouds: PointClouds) -> float:
    """Return the epsilon at which float64 rounding of ``x.y / eps`` can be of the order of 1e-3."""
    return 4096 * UNIT_ROUNDOFF * clouds.radius**2


def solve_itself(
    clouds: PointClouds, eps: float, tolerance: float, budget: Budget
) -> tuple[SinkhornState, bool]:
    """Solve a cloud against itself (`PointClouds.self_problems`).

    The derivative of the averaged update ``f <- (f + softmin f) / 2`` has its spectrum in [0, 1/2]
    (Feydy 2020, Section 3.3), so the update needs neither annealing nor acceleration.
    """
    g, settings = torch.zeros_like(clouds.a), (eps, tolerance, budget)
    return converge(Kernel(clouds), g, *settings, lambda state: (state.f + state.g) / 2)


def require_epsilon(clouds: PointClouds, eps: float) -> None:
    """Raise `ArgumentError` if epsilon is too small."""
    floor = smallest_epsilon(clouds)
    if eps < floor:
        raise ArgumentError(
            f"epsilon = {eps:.3g} is below what float64 resolves for these clouds: use at least "
            f'{floor:.3g} (absolute), or `epsilon="auto"`.'
        )


def require_converged(state: SinkhornState, converged: bool, what: str) -> SinkhornState:
    """Return the state if it converged, else raise `ConvergenceError`."""
    if converged:
        return state
    raise ConvergenceError(
        f"Sinkhorn between {what} stopped at a marginal error of {state.error:.2g} (L1), at "
        f"epsilon = {state.eps:.3g} (absolute). Try a larger epsilon, more iterations, or a larger "
        "marginal_tolerance."
    )


def _geomloss(clouds: PointClouds, eps: float, scaling: float) -> Float[torch.Tensor, " m"]:
    """Return the potential g from GeomLoss (Feydy et al. 2019), which stores n x m matrices."""
    from geomloss import SamplesLoss

    loss = SamplesLoss(
        "sinkhorn",
        p=2,
        blur=math.sqrt(eps / 2),
        scaling=scaling,
        debias=False,
        potentials=True,
        backend="tensorized",
    )
    x, y = clouds.centered(torch.float64)
    _, half_g = loss(clouds.a, x, clouds.b, y)
    return 2 * half_g.view(-1)


def _flash(clouds: PointClouds, eps: float, scaling: float) -> Float[torch.Tensor, " m"]:
    """Return the potential g from flash-sinkhorn's CUDA kernels, in float32 without TF32."""
    if clouds.x.device.type != "cuda":
        raise DependencyError(
            '`engine="flash"` needs a CUDA device and the clouds on it, '
            'but the clouds are on the CPU. Use `engine="wgeo"`.'
        )
    try:
        from flash_sinkhorn import SamplesLoss
    except ImportError as error:
        raise DependencyError(
            '`engine="flash"` needs flash-sinkhorn: pip install flash-sinkhorn, or `engine="wgeo"`.'
        ) from error
    loss = SamplesLoss(
        "sinkhorn",
        blur=math.sqrt(eps),
        scaling=scaling,
        debias=False,
        potentials=True,
        half_cost=False,
        allow_tf32=False,
    )
    x, y = clouds.centered(torch.float32)
    _, g = loss(clouds.a.float(), x, clouds.b.float(), y)
    return g.double().view(-1)


# Iterations of other packages, which return the potential g at one epsilon of the cost ||x - y||^2.
# GeomLoss uses half this cost: for the same plan, its epsilon and its potentials are half of ours.
ENGINES: dict[str, Callable[[PointClouds, float, float], torch.Tensor]] = {
    "geomloss": _geomloss,
    "flash": _flash,
}

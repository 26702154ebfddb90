"""
Write your own solver
=====================

A solver is any object with a name and a method ``solve``. If it returns a `TransportResult` whose
interval contains W2, everything else (chains, straightness, reports) works with it.
"""

# %%
# As an example, match greedily: each point in turn with the nearest one that is still free. A
# matching is a feasible coupling, so its cost is an upper bound. Any feasible potentials give a
# lower bound, here g_j = min_i c_ij and f_i = min_j (c_ij - g_j).
import time
from dataclasses import dataclass

import numpy as np
import torch

import wgeo
from wgeo.transport import Status, TransportResult


@dataclass(frozen=True)
class Greedy:
    """Nearest free partner first, in the order of the rows."""

    name: str = "greedy"

    def solve(self, x, y, a=None, b=None, coupling=None) -> TransportResult:
        start = time.perf_counter()
        if a is not None or b is not None or len(x) != len(y):
            raise wgeo.errors.ArgumentError("Greedy pairs clouds of one size, without weights.")
        cost = torch.cdist(x.double(), y.double()).square()
        g = cost.min(0).values
        f = (cost - g).min(1).values
        free = cost.clone()
        partner = np.empty(len(x), dtype=np.int64)
        for i in range(len(x)):
            partner[i] = int(free[i].argmin())
            free[:, partner[i]] = torch.inf
        upper2 = float(cost[torch.arange(len(x)), torch.from_numpy(partner)].mean())
        lower2 = max(float(f.mean() + g.mean()), 0.0)
        return TransportResult(
            cost=upper2,
            lower=lower2**0.5,
            upper=upper2**0.5,
            status=Status.CERTIFIED if upper2 - lower2 <= 1e-6 * upper2 else Status.BOUNDED,
            solver=self.name,
            seconds=time.perf_counter() - start,
            coupling=partner,
            potentials=(f.cpu().numpy(), g.cpu().numpy()),
        )


# %%
# A check against the certified distance: the interval contains it.
rng = np.random.default_rng(0)
x, y = rng.normal(size=(300, 4)), rng.normal(size=(300, 4)) + 0.5
exact, greedy = wgeo.wasserstein(x, y), wgeo.wasserstein(x, y, solver=Greedy())
print(f"exact  {exact.distance:.4f}, {exact.status}")
print(f"greedy {greedy.lower:.4f} to {greedy.upper:.4f}, {greedy.status}")
assert greedy.lower <= exact.distance <= greedy.upper

# %%
# A plot in the plane shows why greedy matching costs more: the last points have distant partners.
from matplotlib.figure import Figure

few, others = rng.normal(size=(25, 2)), rng.normal(size=(25, 2)) + 1
figure = Figure(figsize=(6.5, 2.8), layout="constrained")
solvers = {"greedy": Greedy(), "exact": wgeo.Exact()}
for ax, (name, solver) in zip(figure.subplots(1, 2), solvers.items(), strict=True):
    result = wgeo.wasserstein(few, others, solver=solver)
    for start, end in zip(few, others[result.coupling], strict=True):
        ax.plot(*np.stack([start, end]).T, color="#BBBBBB", lw=1)
    ax.scatter(*few.T, s=12, color="#0072B2")
    ax.scatter(*others.T, s=12, color="#D55E00")
    ax.set(title=f"{name}: {result.distance:.2f}", aspect="equal")

# %%
# The new solver can be used like any other.
layers = [x + t * (y - x) for t in (0.0, 0.5, 1.0)]
traj = wgeo.Trajectory.from_arrays(layers, labels=np.arange(300) % 3)
segment = wgeo.straightness(traj, solver=Greedy(), bootstrap=0).segments[0]
print(f"length ratio by greedy matching {segment.length_ratio:.3f}")

# %%
# What this shows: a new solver is a small class, and its interval contains the exact distance
# although its coupling is not optimal.

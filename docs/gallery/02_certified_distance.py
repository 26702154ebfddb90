"""
A Wasserstein distance with a certificate
=========================================

Every solver returns the same kind of result: a value, an interval that contains the distance, and a
status that says what is proved.
"""

# %%
# Two clouds of 800 points in 16 dimensions: the second is the first, stretched, rotated and
# shifted.
import numpy as np

import wgeo

rng = np.random.default_rng(0)
x = rng.normal(size=(800, 16))
rotation, _ = np.linalg.qr(np.eye(16) + 0.1 * rng.normal(size=(16, 16)))
y = x * np.linspace(0.5, 2, 16) @ rotation + 1.0

# %%
# `Exact` is the default. The upper end of its interval comes from the cost of a coupling, and the
# lower end from dual potentials. The bounds can therefore be checked without trusting the solver:
exact = wgeo.wasserstein(x, y)
f, g = exact.potentials
slack = ((x[:, None] - y[None]) ** 2).sum(-1) - f[:, None] - g[None]
moved = ((x - y[exact.coupling]) ** 2).sum(1).mean()
print(f"W2 = {exact.distance:.6f}, {exact.status}; relative width of the interval {exact.gap:.0e}")
print(f"potentials never exceed the cost: least slack {slack.min():.1e}")
print(f"mean of the potentials {f.mean() + g.mean():.9f}, cost of the coupling {moved:.9f}")

# %%
# The other solvers are faster or can handle more points. Their intervals are also valid, but wider.
solvers = {
    "Exact": wgeo.Exact(),
    "Sinkhorn": wgeo.Sinkhorn(),
    "Sinkhorn, epsilon 0.1": wgeo.Sinkhorn(epsilon=0.1),
    "Sliced": wgeo.Sliced(projections=256),
    "Gaussian": wgeo.Gaussian(),
}
results = {name: wgeo.wasserstein(x, y, solver=solver) for name, solver in solvers.items()}
for name, result in results.items():
    print(f"{name:22} {result.lower:.4f} to {result.upper:.4f}   {result.status}")

# %%
from matplotlib.figure import Figure

figure = Figure(figsize=(6, 2.6), layout="constrained")
ax = figure.add_subplot(title="Intervals that contain W2")
for row, result in enumerate(results.values()):
    ax.plot([result.lower, result.upper], [row, row], "|-", lw=3, ms=14, color="#0072B2")
ax.axvline(exact.distance, color="#D55E00", lw=1)
ax.set_yticks(range(len(results)), results)
ax.invert_yaxis()
_ = ax.set_xlabel("W2")

# %%
# The clouds may have different sizes and weights. The plan is a sparse array in any case; ``push``
# gives the mean position to which it moves each point, and ``verify`` checks plan and potentials.
weights = rng.uniform(size=500)
part = wgeo.wasserstein(x[:500], y, a=weights)
print(f"W2 = {part.distance:.4f}, {part.status}; {part.plan.nnz} pairs carry mass")
print(f"the first point moves by {np.linalg.norm(part.push(y)[0] - x[0]):.4f}")
print(part.verify(x[:500], y))

# %%
# What this shows: all five intervals contain the certified value. Exact's interval is as narrow as
# rounding allows, that of the default Sinkhorn is narrower than a thousandth of W2, and those of
# Sliced and Gaussian are wide.

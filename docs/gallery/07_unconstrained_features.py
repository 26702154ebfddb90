"""
Unconstrained features: closed forms, and the landscape around them
===================================================================

What would the last layer look like if features were free variables? Theory gives a closed form, and
a certificate says whether the result of a descent is a global minimum.
"""

# %%
# Cross-entropy, five classes of ten samples, and a numerical descent from random features compared
# with the closed form.
import numpy as np

import wgeo
from wgeo.ufm import fit_ce, fit_mse, landscape
from wgeo.ufm.certify import evaluate

labels = np.repeat(np.arange(5), 10)
decays = {"weight_decay": 5e-3, "feature_decay": 5e-4}
closed = fit_ce(labels, dim=8, **decays, method="closed")
solution = fit_ce(labels, dim=8, **decays, method="numerical", collapsed=False, seed=1)
print(f"closed form {closed.objective:.10f}\ndescent     {solution.objective:.10f}")
print(f"{solution.certificate.verdict}: {solution.certificate.evidence}")

# %%
# The collapse of each class to its mean, and the simplex ETF of the means, are results, not
# assumptions:
layers = wgeo.Trajectory.from_arrays([solution.H.T], labels)
collapsed = wgeo.collapse(layers).layers[0]
print(f"NC1 {collapsed.nc1:.1e}, distance to the simplex ETF {collapsed.nc2_etf:.1e}")

# %%
# Squared loss: orthogonal class means without a bias, a simplex ETF with a free one.
for bias in ("none", "free"):
    mse_solution = fit_mse(labels, dim=8, **decays, bias=bias)
    means = mse_solution.H[:, ::10]
    cosine = (means.T @ means / np.outer(*2 * [np.linalg.norm(means, axis=0)]))[0, 1]
    print(
        f"bias {bias}: F = {mse_solution.objective:.6f}, cosine between class means {cosine:+.3f}"
    )

# %%
# Every other critical point is a strict saddle. At zero, where nothing has been learned,
# `landscape` finds a direction in which the objective falls, and takes a step along it:
zero = evaluate(closed.problem, H=np.zeros((8, 50)), weights=[np.zeros((5, 8))])
around = landscape(zero)
print(
    f"{around.verdict}: curvature {around.curvature:.4f}; a step lowers F by {around.decrease:.3g}"
)

# %%
# The objective along that direction, compared with the minimum.
from matplotlib.figure import Figure

along = np.linspace(-1.5, 1.5, 61)
values = []
for t in along:
    H, W = (4 * t * around.direction[name] for name in ("H", "W1"))
    values.append(evaluate(closed.problem, H=H, weights=[W]).objective)
figure = Figure(figsize=(5.5, 3), layout="constrained")
ax = figure.add_subplot(title="Zero is a saddle: F along the descent direction")
ax.plot(4 * along, values, color="#0072B2")
ax.plot(0, zero.objective, "o", color="#D55E00")
ax.axhline(closed.objective, color="#555555", ls="--", lw=1)
ax.text(-6, closed.objective + 0.02, "global minimum", color="#555555")
_ = ax.set(xlabel="step", ylabel="F")

# %%
# What this shows: descent reaches the value of the closed form, and a lower bound from convex
# duality proves that both are global minima; the solution is collapsed to a simplex ETF. For the
# squared loss the free bias decides whether the class means are orthogonal or form a simplex ETF.
# The point at which all features and weights are 0 is a strict saddle: F falls in both directions.

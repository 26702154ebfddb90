"""
Deep neural collapse is not always optimal
==========================================

In a model of several layers with ReLUs between them, orthogonal class means at every layer are
optimal for two classes. For more classes and enough layers, a solution of lower rank, which has a
closed form, is better.
"""

# %%
# Two classes: descents from twenty random starts, in one batch. The best of them reach the value of
# deep neural collapse; the others end at points that do not fit all classes.
import numpy as np

from wgeo.ufm import deep_collapse, fit_deep, lower_rank

labels = np.repeat([0, 1], 3)
model = {"dim": 6, "weight_decays": [4e-3] * 3, "feature_decay": 4e-3 / 3, "activation": "relu"}
collapsed = fit_deep(labels, **model, method="closed")
solution = fit_deep(labels, **model, method="numerical", restarts=20, seed=0)
count = sum(value < collapsed.objective + 1e-6 for value in solution.values)


print(f"collapse {collapsed.objective:.9f}")
print(f"best descent {solution.objective:.9f}; {count} of 20 reach the value of collapse")
for layer in deep_collapse(solution)[1:]:
    print(f"before W{layer.layer}: DNC1 {layer.dnc1:.0e}, DNC2 {layer.dnc2:.0e}")

# %%
# The final values of the twenty descents, and the value of collapse (dashed).
from matplotlib.figure import Figure

figure = Figure(figsize=(5.5, 2.6), layout="constrained")
ax = figure.add_subplot(title="Twenty random starts, two classes")
ax.plot(range(1, 21), solution.values, "o", color="#0072B2")
ax.axhline(collapsed.objective, color="#555555", ls="--", lw=1)
_ = ax.set(xlabel="start, lowest first", ylabel="final F", xticks=range(1, 21, 3))

# %%
# Six classes, four layers: the solution of lower rank represents the classes by the six edges of a
# complete graph on four vertices.
labels = np.arange(6)
model = {"dim": 8, "weight_decays": [1e-3] * 4, "feature_decay": 1e-3}
lower = lower_rank(labels, **model)
print(f"deep neural collapse {lower.settings['dnc']:.6f}, lower rank {lower.objective:.6f}")
ranks, features = [], lower.H
for weights in lower.weights:
    ranks.append(int(np.linalg.matrix_rank(features, tol=1e-6)))
    features = np.maximum(weights @ features, 0)
print(f"ranks of the features before each layer: {ranks}; collapse has 6 everywhere")

# %%
# What this shows: for two classes, no start ends below the value of deep neural collapse, and many
# end above it. For six classes and four layers a solution of rank 4 has a lower objective than
# collapse, so collapse is not the optimum there.

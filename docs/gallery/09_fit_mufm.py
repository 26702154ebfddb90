"""
Fit MUFM, and compare it with a network
=======================================

The multilayer unconstrained feature model ties free features of every layer to the data by optimal
transport. Its optimum is more concentrated than the data, and not collapsed.
"""

# %%
# Fit it to clusters of points: eight layers, three classes.
import numpy as np
from matplotlib.figure import Figure

import wgeo
from wgeo.ufm import fit_mufm

rng = np.random.default_rng(0)
labels = np.arange(300) % 3
x = np.eye(3)[labels] + 0.2 * rng.normal(size=(300, 3))
model = fit_mufm(x, labels, layers=8, weight_decay=5e-3, transport=0.4, bias="free")
print(f"F = {model.objective:.6f} in {model.seconds * 1e3:.0f} ms: {model.certificate.verdict}")
print(f"starts ended between {model.values[0]:.6f} and {model.values[-1]:.6f}")

# %%
# Samples move on straight lines. Along the right singular vectors of W, deviations within a class
# are multiplied by kappa; orthogonal to them nothing moves, so collapse is never complete.
print("kappa:", np.round(model.contraction, 3))
print("NC1 by layer:", " ".join(f"{layer.nc1:.3f}" for layer in model.curve()))

figure = Figure(figsize=(7, 2.8), layout="constrained")
colors = np.array(["#0072B2", "#D55E00", "#009E73"])[labels]
for ax, index in zip(figure.subplots(1, 3, sharex=True, sharey=True), (0, 4, 8), strict=True):
    ax.scatter(*model.layer(index)[:, :2].T, s=6, c=colors)
    ax.set(title=f"layer {index}", aspect="equal")

# %%
# Compare the model with a network. MUFM is given the input features of the first block and the
# labels, and two of its parameters are fitted; the geodesic model is given the first and the last
# features. How well do they predict the decrease of NC1 with depth?
import tempfile

images = wgeo.load_images("digits", limit=600)
run = wgeo.train(
    "isoresnet",
    images,
    tempfile.mkdtemp(),
    epochs=10,
    lr=0.05,
    weight_decay=5e-3,
    options={"width": 16, "depth": 6},
)
traj = wgeo.trace(run.module, images)
comparison = wgeo.compare(traj)
print(f"{'NC1':10} {'measured':>9} {'geodesic':>9} {'MUFM':>9}")
for measured, line, predicted in zip(
    comparison.network, comparison.geodesic, comparison.mufm, strict=True
):
    print(
        f"{measured.name:10} {measured.nc1:9.3g} {line.collapse.nc1:9.3g} "
        f"{predicted.collapse.nc1:9.3g}"
    )

# %%
# What this shows: all starts of the fit end at the same value, which is certified as the global
# minimum, and within the model NC1 falls with depth. The geodesic model, which is given both ends,
# predicts the NC1 of this network within a factor of two; MUFM is far more collapsed than the
# network after the first block, and then hardly changes.

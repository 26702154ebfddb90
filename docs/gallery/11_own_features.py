"""
Analyze your own features
=========================

Features need not come from a network that wgeo supports, or from PyTorch. Arrays with corresponding
rows form a trajectory.
"""

# %%
# As an example, use the hidden layers of a scikit-learn MLP.
import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import wgeo
from wgeo.analysis import analyze_trajectory
from wgeo.trajectory import Classifier

pixels, labels = load_digits(return_X_y=True)
pixels, labels = pixels[:800] / 16, labels[:800]
mlp = MLPClassifier((64, 64, 64), max_iter=500, alpha=1e-3, random_state=0).fit(pixels, labels)

features = [pixels]
for weight, bias in zip(mlp.coefs_[:-1], mlp.intercepts_[:-1], strict=True):
    features.append(np.maximum(features[-1] @ weight + bias, 0))

# %%
# Layers of one width form a segment; a change of width starts another. With the classifier and the
# predictions, NC3, NC4 and the accuracy are measured too.
traj = wgeo.Trajectory.from_arrays(
    features,
    labels,
    names=["pixels", "hidden1", "hidden2", "hidden3"],
    predictions=mlp.predict(pixels),
    classifier=Classifier(mlp.coefs_[-1].T, mlp.intercepts_[-1]),
)
print([segment.names for segment in traj.segments])

# %%
analysis = analyze_trajectory(traj, bootstrap=50)
print(analysis.verdict)

# %%
_ = wgeo.plots.collapse(analysis, "nc1")

# %%
# ``analysis.report("runs/mlp")`` writes the same report as for a network.

# %%
# What this shows: the path of this MLP is longer than orthogonal steps would make it, so its layers
# do not move the features along a geodesic, although NC1 falls at every layer. Most of the fall
# happens at the last one.

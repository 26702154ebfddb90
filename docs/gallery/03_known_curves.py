"""
Straightness of curves that are known
=====================================

Four small paths of two or more points, for which every figure of straightness can be worked out by
hand, and which tell the figures apart.
"""

# %%
# A trajectory is the same samples at every layer. Labels matter for collapse alone.
import numpy as np
from matplotlib.figure import Figure

import wgeo

angles = np.linspace(0, np.pi / 2, 9)
arc = np.stack([np.cos(angles), np.sin(angles)], axis=1)
spread = np.array([[0.0, 0.0], [3.0, 0.0]])  # two samples, far enough apart not to be exchanged

paths = {
    # all samples along one quarter circle: pi / (2 sqrt 2) = 1.1107 in the limit of many steps
    "quarter circle": [spread + point for point in arc],
    # forth, back and forth: 5/3 of the way that was needed
    "overshoot": [spread + np.array([s, 0.0]) for s in (0.0, 2.0, 1.0, 3.0)],
    # every sample straight and even, to its own place: a geodesic
    "stretching": [spread * (1 + t) + np.array([0.0, t]) for t in np.linspace(0, 1, 5)],
    # both straight, but crossing: each ends where the other would have been nearer
    "crossing": [np.array([[-1 + 3 * t, 0.0], [1 - 2 * t, 0.0]]) for t in np.linspace(0, 1, 9)],
}
labels = np.array([0, 1])

# %%
figure = Figure(figsize=(7, 4.4), layout="constrained")
print(f"{'':15} {'length':>8} {'action':>8} {'line':>8} {'score':>8} {'OT':>8}")
for ax, (name, arrays) in zip(figure.subplots(2, 2).flat, paths.items(), strict=True):
    traj = wgeo.Trajectory.from_arrays(arrays, labels)
    segment = wgeo.straightness(traj, bootstrap=0).segments[0]
    shown = (
        segment.length_ratio,
        segment.action_ratio,
        segment.line_shape_ratio,
        segment.line_shape_score,
        segment.ot_score,
    )
    print(f"{name:15} " + " ".join(f"{value:8.4f}" for value in shown))
    for k, colour in enumerate(("#0072B2", "#D55E00")):
        across, up = np.stack(arrays)[:, k].T
        lift = 0.0 if np.ptp(up) else 0.3 * np.arange(len(up))  # paths on a line: later is higher
        ax.plot(across, up + lift, "o-", color=colour, ms=4)
    ax.set_title(name)
    ax.set_aspect("equal", adjustable="datalim")

# %%
# - On the quarter circle all ratios are those of an arc to its chord: every sample takes the same
#   detour.
# - The overshoot has a line-shape score of 3: of three unit steps one is undone.
# - Stretching is a geodesic at constant speed: all figures are 1.
# - Crossing is straight for every sample (line shape 1), and no geodesic: as *distributions* the
#   layers go inwards and out again, since samples are exchangeable. The OT score says that the
#   pairing of the ends is not the cheapest. This is why paths of samples do not suffice.

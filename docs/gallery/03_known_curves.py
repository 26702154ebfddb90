"""
Straightness of known curves
============================

Four small paths for which every measure of straightness can be computed by hand, and on which the
measures differ.
"""

# %%
# A trajectory is the same samples at every layer. Labels matter only for collapse.
import numpy as np
from matplotlib.figure import Figure

import wgeo

angles = np.linspace(0, np.pi / 2, 9)
arc = np.stack([np.cos(angles), np.sin(angles)], axis=1)
spread = np.array([[0.0, 0.0], [3.0, 0.0]])  # two samples, too far apart to be exchanged

paths = {
    # all samples along one quarter circle: pi / (2 sqrt 2) = 1.1107 in the limit of many steps
    "quarter circle": [spread + point for point in arc],
    # forward, back and forward: 5/3 of the direct distance
    "overshoot": [spread + np.array([s, 0.0]) for s in (0.0, 2.0, 1.0, 3.0)],
    # every sample moves straight at constant speed to its optimal partner: a geodesic
    "stretching": [spread * (1 + t) + np.array([0.0, t]) for t in np.linspace(0, 1, 5)],
    # both straight, but crossing: each ends nearer to the start of the other
    "crossing": [np.array([[-1 + 3 * t, 0.0], [1 - 2 * t, 0.0]]) for t in np.linspace(0, 1, 9)],
}
labels = np.array([0, 1])

# %%
figure = Figure(figsize=(7, 4.4), layout="constrained")
print(f"{'':15} {'length':>8} {'action':>8} {'line':>8} {'score':>8} {'OT':>8}")
for ax, (name, arrays) in zip(figure.subplots(2, 2).flat, paths.items(), strict=True):
    traj = wgeo.Trajectory.from_arrays(arrays, labels)
    segment = wgeo.straightness(traj, bootstrap=0).segments[0]
    measures = (
        segment.length_ratio,
        segment.action_ratio,
        segment.line_shape_ratio,
        segment.line_shape_score,
        segment.ot_score,
    )
    print(f"{name:15} " + " ".join(f"{value:8.4f}" for value in measures))
    for k, color in enumerate(("#0072B2", "#D55E00")):
        across, up = np.stack(arrays)[:, k].T
        # paths on a line: later layers are drawn higher
        lift = 0.0 if np.ptp(up) else 0.3 * np.arange(len(up))
        ax.plot(across, up + lift, "o-", color=color, ms=4)
    ax.set_title(name)
    ax.set_aspect("equal", adjustable="datalim")

# %%
# - On the quarter circle every sample takes the same detour: the length ratio, the line-shape ratio
#   and the line-shape score are that of an arc to its chord, and the action ratio is its square.
# - The overshoot has a line-shape score of 3: of its three steps, one goes back, so their unit
#   vectors add up to length 1.
# - Stretching is a geodesic at constant speed: all measures are 1.
# - Crossing is straight for every sample (line shape 1) but not a geodesic: as *distributions* the
#   layers contract and expand again, since samples are exchangeable. The OT score shows that the
#   pairing of the ends is not optimal.

# %%
# What this shows: no single measure is sufficient. The overshoot, whose samples turn back, has the
# OT score of a geodesic. Only the length, the action and the OT score show that the crossing is not
# a geodesic.

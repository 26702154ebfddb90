"""
A first analysis, on handwritten digits
=======================================

Train a small residual network, follow a thousand images through it, and ask the three questions:
how far, how straight, how collapsed?
"""

# %%
# Train. The architecture has one width and one spatial size throughout, so that its layers share a
# feature space.
import tempfile

import wgeo

images = wgeo.load_images("digits", limit=1000)
folder = tempfile.mkdtemp()
run = wgeo.train(
    "isoresnet",
    images,
    folder,
    epochs=10,
    lr=0.05,
    weight_decay=5e-3,
    options={"width": 16, "depth": 6},
)
print(f"training accuracy {run.accuracy:.3f}; last checkpoint {run.last.name}")

# %%
# Load the checkpoint, and trace the images through it. The rows of every layer are the same images.
net = wgeo.load_checkpoint(run.last)
traj = wgeo.trace(net, images)
print(f"{len(traj)} images at {len(traj.layers)} layers: {[layer.name for layer in traj.layers]}")

# %%
# How far? The Wasserstein distance between the input features of the first block and the output of
# the last, with an interval that contains it.
result = wgeo.wasserstein(traj.first, traj.last)
print(f"W2 = {result.distance:.4f} in [{result.lower:.4f}, {result.upper:.4f}], {result.status}")

# %%
# How straight? The blocks' distances add up to the length of the path; for a geodesic it equals the
# distance between its ends.
segment = wgeo.straightness(traj).segments[0]
low, high = segment.intervals["length_ratio"]
print(f"length / distance = {segment.length_ratio:.2f}, 95 % interval {low:.2f} to {high:.2f}")
print(f"OT score, end to end = {segment.ot_score:.3f} at resolution {segment.resolution:.1f}")

# %%
# How collapsed? Variability within the classes relative to that between them, layer by layer.
for layer in wgeo.collapse(traj).layers:
    print(f"{layer.name:9} NC1 {layer.nc1:7.3g}   nearest-center accuracy {layer.ncc_accuracy:.2f}")

# %%
# `analyze` does all of this and returns a record, the source of all figures and reports.
analysis = wgeo.analyze(net, images, bootstrap=50)
print(analysis.verdict)

# %%
# The paths of the class means. A network on the geodesic would move them along the dashed chords.
means = wgeo.plots.class_means(analysis)

# %%
# How far each block moves the cloud: bars are Wasserstein distances, dashes the distances under the
# network's own pairing.
_ = wgeo.plots.distances(analysis)

# %%
# ``analysis.report("runs/digits")`` would write all figures and a report in HTML.

# %%
# What this shows: the path of this small network is about a third longer than the geodesic between
# its ends, and the Jacobians of most of its blocks exclude an optimal map. NC1 falls from the stem
# to the last block except at one layer.

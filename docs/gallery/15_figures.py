"""
Figures for a paper, for a slide, and in motion
===============================================

Every function of `wgeo.plots` draws one panel into the axes that it is given, and returns them.
"""

# %%
# Something to draw: a small network after a few epochs.
import tempfile
from pathlib import Path

import wgeo

images = wgeo.load_images("digits", limit=500)
folder = Path(tempfile.mkdtemp())
run = wgeo.train(
    "isoresnet",
    images,
    folder,
    epochs=6,
    lr=0.05,
    weight_decay=5e-3,
    options={"width": 16, "depth": 6, "stride": 2},
)
net = wgeo.load_checkpoint(run.last)
analysis = wgeo.analyze(net, images, bootstrap=50, reference="none", brenier=0)

# %%
# A paper's column is 3.35 inches wide, and lettering has the size of a caption's.
plots = wgeo.plots
column = plots.collapse(analysis, "nc1", ax=plots.axes("column"))
print(plots.save(column, folder / "nc1.pdf").name)

# %%
# The width of its page.
page = plots.distances(analysis, ax=plots.axes("page"))

# %%
# A slide: small as a figure, and put over the whole of a slide its letters are 18 points and more.
slide = plots.class_means(analysis, ax=plots.axes("slide"))
print(plots.save(slide, folder / "means.png", dpi=343).name, "is 1920 pixels wide")

# %%
# Panels side by side: any axes will do.
from matplotlib.figure import Figure

figure = Figure(figsize=(7.2, 2.8), layout="constrained")
left, right = figure.subplots(1, 2)
plots.straightness(analysis, left)
plots.interpolation_gap(analysis, right)

# %%
# In motion: what the network does with the clouds, beside what optimal transport would do. An
# ``.mp4`` takes ffmpeg, a ``.gif`` takes nothing.
film = plots.flow(analysis.trajectory, folder / "flow.gif", samples=200, seconds=1, fps=10)
print(film.name)

"""
Figures for a paper, for a slide, and animations
================================================

A figure function of `wgeo.plots` draws one panel into the given axes and returns them.
"""

# %%
# An example: a small network after a few epochs.
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
analysis = wgeo.analyze(net, images, bootstrap=50, reference="none", brenier=0, alignment=0)

# %%
# A column of a paper is 3.35 inches wide; text in the figure has the size of a caption.
plots = wgeo.plots
column = plots.collapse(analysis, "nc1", ax=plots.axes("column"))
print(plots.save(column, folder / "nc1.pdf").name)

# %%
# The width of a page.
page = plots.distances(analysis, ax=plots.axes("page"))

# %%
# A slide: the figure is drawn small, and when it is enlarged to the full slide, its text has at
# least 18 points.
slide = plots.class_means(analysis, ax=plots.axes("slide"))
print(plots.save(slide, folder / "means.png", dpi=343).name, "is 1920 pixels wide")

# %%
# Panels side by side: any axes can be used.
from matplotlib.figure import Figure

figure = Figure(figsize=(7.2, 2.8), layout="constrained")
left, right = figure.subplots(1, 2)
plots.straightness(analysis, left)
plots.interpolation_gap(analysis, right)

# %%
# An animation of the clouds: the network compared with optimal transport. An ``.mp4`` needs ffmpeg,
# a ``.gif`` needs nothing else.
animation = plots.flow(analysis.trajectory, folder / "flow.gif", samples=200, seconds=1, fps=10)
print(animation.name)

# %%
# What this shows: every figure draws a record into any axes. The figures of a paper and
# those of the report therefore show the same numbers.

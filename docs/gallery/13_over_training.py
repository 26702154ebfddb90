"""
Several checkpoints: the epochs of a training run
=================================================

Neural collapse and straight paths develop late in training. `wgeo.analysis.Series` compares
analyses.
"""

# %%
# Train and keep a few checkpoints; the initialization is epoch 0.
import tempfile

import wgeo
from wgeo.analysis import Series

images = wgeo.load_images("digits", limit=500)
run = wgeo.train(
    "isoresnet",
    images,
    tempfile.mkdtemp(),
    epochs=16,
    lr=0.05,
    weight_decay=5e-3,
    options={"width": 16, "depth": 6},
    checkpoints=[0, 1, 4, 16],
)

# %%
# Analyze each on the same images, and combine the records.
records = {
    path.stem: wgeo.analyze(
        wgeo.load_checkpoint(path),
        images,
        bootstrap=50,
        reference="none",
        brenier=0,
        alignment=0,
        mufm=False,
    ).record
    for path in run.checkpoints
}
series = Series.of(records)
print(series.to_pandas()[["name", "length_ratio", "ot_score"]].to_string(index=False))

# %%
# Straightness over the epochs; the axis is logarithmic, with the initialization at its left.
_ = wgeo.plots.over(series, "length_ratio")

# %%
# Variability over depth, one line per epoch; later epochs are darker.
_ = wgeo.plots.profiles(series, "nc1")

# %%
# ``series.report("runs/training")`` writes a report with all of this, as ``wgeo analyze
# epoch-*.pt`` does.

# %%
# What this shows: in this run the path became longer in the first epoch and straighter afterwards,
# while NC1 at the last layer fell by more than a factor of ten. The OT score alone would mislead:
# it is highest for the untrained network.

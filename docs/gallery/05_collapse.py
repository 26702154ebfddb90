"""
Neural collapse: a perfect example, and a network
=================================================

For a simplex ETF without variability all metrics are zero. Perturb it in one way at a time to see
what each metric measures; then measure a network.
"""

# %%
import numpy as np

import wgeo
from wgeo.models import simplex_etf

rng = np.random.default_rng(0)
labels = np.arange(400) % 4
corners = np.asarray(simplex_etf(4, 4))  # a vertex for each class, K = d = 4
etf = corners[labels]

noise = rng.normal(size=etf.shape)
cases = {
    "perfect": etf,
    "variability": etf + 0.1 * noise,
    "unequal norms": etf * np.array([1.0, 1.2, 1.4, 1.6])[labels, None],
    "unequal angles": etf + 0.5 * np.roll(corners, 1, axis=0)[labels] * (labels < 2)[:, None],
    "shifted": etf + 3.0,  # the global mean is subtracted: nothing changes
}
traj = wgeo.Trajectory.from_arrays(list(cases.values()), labels, list(cases))
for layer in wgeo.collapse(traj).layers:
    print(
        f"{layer.name:15} NC1 {layer.nc1:.1e}   norms {layer.nc2_equinorm:.1e}   "
        f"angles {layer.nc2_equiangle:.1e}   to the ETF {layer.nc2_etf:.1e}   CDNV {layer.cdnv:.1e}"
    )

# %%
# A network, streamed: batches pass through it and are discarded, so the number of images does not
# affect memory.
import tempfile

images = wgeo.load_images("digits", limit=1000)
run = wgeo.train(
    "isoresnet",
    images,
    tempfile.mkdtemp(),
    epochs=12,
    lr=0.05,
    weight_decay=5e-3,
    options={"width": 16, "depth": 6},
)
net = wgeo.load_checkpoint(run.last)
result = wgeo.collapse(lambda: wgeo.stream(net, images))
for name in ("nc1", "cdnv", "nc2_etf"):
    depth = result.progress[name]
    print(f"{name:8} Kendall's tau with depth {depth.kendall_tau:+.2f}, {depth.violations} rises")
print(f"the nearest class mean reaches 99 % of the network's accuracy at {result.learned_at}")

# %%
# NC1 at every layer, from the record of an analysis, and the prediction of the geodesic model.
analysis = wgeo.analyze(
    net, images, bootstrap=0, reference="none", brenier=0, alignment=0, mufm=False
)
_ = wgeo.plots.collapse(analysis, "nc1")

# %%
# What this shows: NC1 and CDNV change only if samples vary within their class, and adding one
# vector to all features changes nothing. Norms and angles are not independent: unequal norms also
# change the angles between the centered means. In the trained network CDNV and the distance to the
# ETF fall at every layer, and NC1 at all but one.

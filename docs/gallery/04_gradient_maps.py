"""
Is a block an optimal map? The Brenier test
===========================================

An optimal map is the gradient of a convex function: its Jacobian is symmetric, without negative
eigenvalues, at every point. This can be tested at single points, with any number of samples.
"""

# %%
# A rotation is not a gradient: its asymmetry is tan² of the angle. Beyond 90° its symmetric part is
# negative too.
import math

import torch
from torch import nn

import wgeo

points = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
for degrees in (0, 30, 60, 120):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rotation = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    result = wgeo.brenier(lambda z, r=rotation: z @ r.T, points)
    print(
        f"rotation by {degrees:3}°: asymmetry {result.asymmetry:.4f} (tan² = {(s / c) ** 2:.4f}), "
        f"smallest eigenvalue {result.min_eigenvalue:+.3f}"
    )

# %%
# A residual block with tied weights, x + Wᵀ relu(W x + b), *is* the gradient of a convex
# function. With independent weights in its second layer it is not.


class Block(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 24), nn.Linear(24, 6)
        if tied:
            self.second.weight = nn.Parameter(self.first.weight.T)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(torch.relu(self.first(x)))


torch.manual_seed(0)
points = torch.randn(40, 6)
for name, tied in (("tied", True), ("free", False)):
    result = wgeo.brenier(Block(tied), points)
    low, high = result.intervals["asymmetry"]
    print(
        f"{name}: asymmetry {result.asymmetry:.1e} [{low:.1e}, {high:.1e}], of the displacement "
        f"{result.displacement_asymmetry:.2f}, smallest eigenvalue {result.min_eigenvalue:.2f}"
    )

# %%
# Both blocks are near the identity, which is symmetric and reduces the asymmetry of any block. The
# asymmetry of the displacement (the block minus the identity) is not reduced.
#
# In a network, `analyze` tests every block on full spatial features: here before and after
# training.
import tempfile

images = wgeo.load_images("digits", limit=500)
run = wgeo.train(
    "isoresnet",
    images,
    tempfile.mkdtemp(),
    epochs=8,
    lr=0.05,
    options={"width": 8, "depth": 4, "stride": 2},
)
for path in (run.checkpoints[0], run.last):
    net = wgeo.load_checkpoint(path)
    analysis = wgeo.analyze(net, images, bootstrap=50, reference="none", brenier=6)
    print(path.stem, [f"{block['asymmetry']:.3f}" for block in analysis.record["blocks"]])

# %%
_ = wgeo.plots.gradient_maps(analysis)

# %%
# What this shows: the test gives the known answers for rotations and for the block with tied
# weights. Training lowered the asymmetry of every block of this network, but no interval reaches 0:
# none of the blocks is an optimal map.

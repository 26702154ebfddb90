"""
Across a change of stage, through the block's own shortcut
==========================================================

W2 needs both clouds in one space, but an ordinary ResNet changes the space of its features: the
width doubles, the resolution halves. The block's own shortcut maps the old features to the new
space.
"""

# %%
# A narrow CIFAR ResNet on digits scaled to 16 x 16 pixels. `blocks` lists the layers.
import tempfile

import wgeo

images = wgeo.load_images("digits", limit=600, size=16)
run = wgeo.train(
    "cifar_resnet20", images, tempfile.mkdtemp(), epochs=5, lr=0.1, options={"width": 8}
)
net = wgeo.load_checkpoint(run.last)
print(wgeo.blocks(net, images))

# %%
# Nine blocks in three stages. The first block of a new stage maps s(x) to s(x) + F(x), both of
# them in the new space, and the stage's segment begins at s(x).
traj = wgeo.trace(net, images)
for block in traj.blocks:
    print(f"{block.source:9} -> {block.target:9} {block.x.shape[1]:3} features, via {block.via}")
for segment in traj.segments:
    print("segment:", ", ".join(segment.names))

# %%
# Therefore every block has a distance, and every stage a straightness.
analysis = wgeo.analyze(net, images, bootstrap=50, reference="none", brenier=0, alignment=0)
_ = wgeo.plots.straightness(analysis)

# %%
# One curve through the whole network needs a common space, which you choose: ``pad`` adds zero
# features, ``pca:D`` projects.
for embed in ("pad", "pca:8"):
    whole = wgeo.straightness(traj.embedded(embed), bootstrap=0).segments[0]
    print(f"{embed:6} {len(whole.layers)} layers, length ratio {whole.length_ratio:.2f}")

# %%
# What this shows: the distance of a block, even of one that doubles the width, and the straightness
# of a stage depend on no embedding. The length ratio of the whole network does, so state the
# embedding with it.

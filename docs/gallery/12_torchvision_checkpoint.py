"""
Analyse a checkpoint of torchvision's ResNet-18
===============================================

As one would with a downloaded file. These pages are built without a network, so the file is made
here: a fresh ResNet-18, trained for a few steps on digits and saved as a plain state dict. **Its
numbers say nothing about ImageNet**; the steps are the same.
"""

# %%
# The file: what ``torch.save(model.state_dict(), ...)`` leaves behind, and nothing else.
import tempfile
from pathlib import Path

import torch
import torchvision

import wgeo

images = wgeo.load_images("digits", limit=256, size=32, normalize="half")
torch.manual_seed(0)
model = torchvision.models.resnet18(num_classes=10)
model.conv1 = torch.nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)  # digits have one channel
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
for _ in range(2):
    for x, y in images.batches(64, images.normalize):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), torch.from_numpy(y)).backward()
        optimizer.step()
path = Path(tempfile.mkdtemp()) / "resnet18.pth"
torch.save(model.state_dict(), path)
print(f"{path.name}, {path.stat().st_size / 2**20:.0f} MiB")

# %%
# Load it. Ten classes and one input channel are read off the tensors. Nothing in the file is
# executed: it is opened with ``weights_only``.
net = wgeo.load_checkpoint(path, arch="torchvision:resnet18")
print(net.arch, net.num_classes, net.provenance.sha256[:12])
print(wgeo.blocks(net, images))

# %%
# Eight blocks, four stages. For ImageNet, ``images`` would be ``wgeo.load_images("folder:val",
# limit=2000)`` (scaled and cropped to 224 pixels), normalised as torchvision's weights expect.
analysis = wgeo.analyze(net, images, bootstrap=50, reference="none", brenier=0)
print(analysis.verdict)

# %%
moved = wgeo.plots.distances(analysis)

# %%
# The same from a shell, which also writes the report::
#
#     wgeo analyze resnet18.pth --arch torchvision:resnet18 --data folder:val --out runs/r18

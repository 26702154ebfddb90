"""
Analyze a checkpoint of torchvision's ResNet-18
===============================================

The same steps apply to a downloaded file. These pages are built without internet access, so the
file is created here: a ResNet-18 trained for a few steps on digits and saved as a plain state dict.
**Its numbers say nothing about ImageNet.**
"""

# %%
# The file is the output of ``torch.save(model.state_dict(), ...)``.
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
# Load it. The ten classes and the single input channel are inferred from the tensors. No code in
# the file is run.
net = wgeo.load_checkpoint(path, arch="torchvision:resnet18")
print(net.arch, net.num_classes, net.provenance.sha256[:12])
print(wgeo.blocks(net, images))

# %%
# Eight blocks, four stages. For ImageNet, ``images`` would be ``wgeo.load_images("folder:val",
# limit=2000)`` (scaled and cropped to 224 pixels), normalized as torchvision's weights expect.
analysis = wgeo.analyze(net, images, bootstrap=50, reference="none", brenier=0, alignment=0)
print(analysis.verdict)

# %%
_ = wgeo.plots.distances(analysis)

# %%
# The same from a shell, which also writes the report::
#
#     wgeo analyze resnet18.pth --arch torchvision:resnet18 --data folder:val --out runs/r18

# %%
# What this shows: a plain state dict is sufficient. These images do not decide whether the blocks
# are optimal maps; the verdict says so, and its last sentence names what would decide it.

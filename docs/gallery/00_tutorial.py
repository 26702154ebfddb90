"""
Tutorial: does weight decay straighten my network?
==================================================

One question from beginning to end: train two networks in plain PyTorch, save them, analyze the
files, read the answer, compare the two, and write it up. The networks are small, so that this page
runs in under a minute; the steps are those for your own checkpoints.
"""

# %%
# Train in plain PyTorch
# ----------------------
# The network is an ordinary ``nn.Module``: a stem, six residual blocks of one width, and a linear
# classifier.
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import wgeo


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x):
        return x + self.branch(x)


class DigitNet(nn.Module):
    def __init__(self, width=16, depth=6):
        super().__init__()
        convolution = nn.Conv2d(1, width, 3, stride=2, padding=1)
        self.stem = nn.Sequential(convolution, nn.BatchNorm2d(width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


data = load_digits()
x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
y = torch.tensor(data.target)
x, y = x[:600], y[:600]


def train(weight_decay, epochs=40):
    torch.manual_seed(0)
    net = DigitNet()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
        schedule.step()
    return net


# %%
# Save
# ----
folder = Path(tempfile.mkdtemp())
for decay in (0.0, 5e-3):
    torch.save(train(decay).state_dict(), folder / f"decay-{decay}.pt")
print(sorted(path.name for path in folder.iterdir()))

# %%
# Analyze
# -------
# For an architecture of yours, build the network, load its weights, and pass the module with the
# images: a pair ``(x, labels)`` of arrays or tensors, a ``Dataset`` or a ``DataLoader``. (For known
# architectures, :func:`wgeo.load_checkpoint` reads the file; from a shell, the command is
# ``wgeo analyze FILE --arch NAME --data IMAGES``.)


def load(decay):
    net = DigitNet()
    net.load_state_dict(torch.load(folder / f"decay-{decay}.pt", weights_only=True))
    return net.eval()


with_decay = wgeo.analyze(load(5e-3), (x, y), bootstrap=50, reference="none")
without = wgeo.analyze(load(0.0), (x, y), bootstrap=50, reference="none")

# %%
# Read the answer
# ---------------
# The verdict begins with reasons for caution, marked ``!``. A sentence marked ``?`` is an open
# question; the last sentence of the verdict says which measurement would decide it.
print(with_decay.verdict)

# %%
# The numbers behind the sentences are in the record: ``analysis.segments``, ``analysis.blocks`` and
# ``analysis.layers``, or ``analysis.to_pandas()``. The *length ratio* is the length of the path
# through all layers, divided by the Wasserstein distance between its ends: 1 on a geodesic. If the
# steps of the blocks were orthogonal to each other, the ratio would be :math:`\sqrt{B}`, where
# :math:`B` is the effective number of moving blocks.
for name, analysis in (("decay 5e-3", with_decay), ("no decay", without)):
    path = analysis.segments[0]["centred"]
    low, high = path["intervals"]["length_ratio"]
    nc1 = analysis.layers[-1]["collapse"]["nc1"]
    print(
        f"{name}: length ratio {path['length_ratio']:.3f} ({low:.3f} to {high:.3f}); "
        f"sqrt(B) {path['sqrt_moving_blocks']:.2f}; NC1 {nc1:.3f}"
    )

# %%
# Look at the paths: each class mean on its way through the layers, and the straight line that it
# would follow on a geodesic (dashed).
means = wgeo.plots.class_means(with_decay)

# %%
# NC1, the variability within the classes relative to that between them, from layer to layer.
collapse = wgeo.plots.collapse(with_decay, "nc1")

# %%
# Compare
# -------
# Is the difference between the two networks larger than the choice of images can explain?
# :func:`wgeo.straighter_than` tests it. The answer is about these two networks, not about weight
# decay: for a statement about the recipe, pass several networks on each side
# (``straighter_than([...], [...])``).
first, second = (wgeo.trace(load(decay), (x, y)) for decay in (5e-3, 0.0))
(test,) = wgeo.straighter_than(first, second, centred=True)
print(f"line-shape ratio {test.value:.3f} against {test.reference:.3f}; p = {test.p_value:.3f}")

# %%
# Write it up
# -----------
# ``report`` writes the record (``analysis.json``), all figures (PNG, SVG and their data as CSV) and
# a report that can be read offline. Its page *Methods* states how each number was measured, in
# sentences that can be copied into a paper.
page = with_decay.report(folder / "run")
print(page.relative_to(folder))

# %%
# What this shows: on these images the network with decay has the shorter path. It does not show
# that decay was the cause: for that, one must train with several seeds to the terminal phase, as
# the experiments do.

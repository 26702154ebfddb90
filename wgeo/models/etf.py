"""A classifier that is not learned: the vertices of a fixed simplex equiangular tight frame."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from ..errors import ArgumentError
from .parts import positive
from .residual import ConvBlock, projection


class FixedLinear(nn.Linear):
    """A linear map without bias whose weight is a buffer: saved and moved, never trained.

    Parameters
    ----------
    weight : Tensor, (K, d)
    """

    def __init__(self, weight: torch.Tensor) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_parameter("bias", None)

    def reset_parameters(self) -> None:
        """Keep the weight: there is nothing to draw."""


def simplex_etf(num_classes: int, dim: int | None = None) -> torch.Tensor:
    """Return K unit vectors in R^d with pairwise cosine -1/(K-1), rows of a (K, d) tensor.

    W = sqrt(K/(K-1)) (I_K - J/K) P^T  (Papyan, Han and Donoho 2020, definition 1), with P^T P = I.
    The columns of P are the normalised indicators of K consecutive groups of features, so that
    non-negative features (after a ReLU) can align with every class: h = P e_k gives the logits
    proportional to W w_k plus a constant. A random rotation P could ask for negative features.

    Parameters
    ----------
    num_classes : int
        K >= 2.
    dim : int, optional
        d >= K; default K, where P = I.

    Raises
    ------
    ArgumentError
        K < 2 or d < K.
    """
    dim = num_classes if dim is None else dim
    positive(num_classes=num_classes, dim=dim)
    if num_classes < 2:
        raise ArgumentError("A simplex ETF needs at least two classes.")
    if dim < num_classes:
        raise ArgumentError(
            f"A simplex ETF of {num_classes} classes needs at least {num_classes} features, "
            f"and there are {dim}."
        )
    group = torch.arange(dim) * num_classes // dim  # (d,), which class a feature belongs to
    p = nn.functional.one_hot(group, num_classes).double()  # (d, K)
    p /= p.norm(dim=0)
    centred = torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes
    return ((num_classes / (num_classes - 1)) ** 0.5 * centred @ p.T).float()


def with_etf_classifier(net: nn.Module, dim: str = "K") -> nn.Module:
    """Return a copy of a network whose classifier is a fixed simplex ETF (Zhu et al. 2021).

    Parameters
    ----------
    net : nn.Module
        Any network with a linear head for ``dim="keep"``; for ``dim="K"`` a ResNet of torchvision
        (or a user's made of its blocks) or a CIFAR ResNet, since the last residual block is made
        narrower.
    dim : ``"K"``, ``"keep"``
        ``"K"``: the last residual block ends in K features instead of d: its last convolution has K
        filters, and its shortcut becomes a 1 x 1 projection with batch norm. This is where the
        memory is saved (20.7 % of ResNet-18's parameters at K = 10, 4.5 % of ResNet-50's); to
        project after the pooling instead would save nothing. Features that are K already stay.
        ``"keep"``: the features stay as they are, and only the head is fixed.

    Returns
    -------
    nn.Module
        The new weights are freshly drawn, the rest is copied. Its state dict has the frame under
        the old head's name, without a bias; `from_state` recognises it by that.

    Raises
    ------
    ArgumentError
        No linear head, fewer features than classes, or ``dim="K"`` where the last block is not one
        that can be narrowed.
    """
    if dim not in ("K", "keep"):
        raise ArgumentError(f"dim must be 'K' or 'keep', not {dim!r}.")
    net = copy.deepcopy(net)
    found = [(name, part) for name, part in net.named_modules() if isinstance(part, nn.Linear)]
    if not found:
        raise ArgumentError(f"{type(net).__name__} has no linear classifier to replace.")
    name, head = found[-1]
    width = head.in_features
    if dim == "K" and width != head.out_features:
        width = head.out_features
        _narrow(_last_block(net, head.in_features), width)
    frame = FixedLinear(simplex_etf(head.out_features, width)).to(head.weight.device)
    owner, _, attribute = name.rpartition(".")
    setattr(net.get_submodule(owner), attribute, frame)
    return net


def _last_block(net: nn.Module, width: int) -> BasicBlock | Bottleneck | ConvBlock:
    found = [m for m in net.modules() if isinstance(m, BasicBlock | Bottleneck | ConvBlock)]
    # A block without a final activation belongs to an isotropic network, whose point is one width.
    if found and not isinstance(getattr(found[-1], "act2", None), nn.Identity):
        last = _closing(found[-1])[1]
        if last.out_channels == width:
            return found[-1]
    raise ArgumentError(
        f"`dim='K'` narrows the last residual block, and in {type(net).__name__} none of "
        "torchvision's ResNets' or wgeo's CIFAR ResNets' kind feeds the classifier. "
        "Use `dim='keep'`; in training, `classifier='etf-keep'`."
    )


def _closing(block: BasicBlock | Bottleneck | ConvBlock) -> tuple[str, nn.Conv2d]:
    """Return which convolution ends the block's branch: its number and itself."""
    number = "3" if isinstance(block, Bottleneck) else "2"
    conv = getattr(block, "conv" + number)
    assert isinstance(conv, nn.Conv2d)
    return number, conv


def _narrow(block: BasicBlock | Bottleneck | ConvBlock, width: int) -> None:
    """Make a residual block end in `width` channels, in place."""
    number, old = _closing(block)
    device = old.weight.device
    size, pad = old.kernel_size[0], old.padding[0]
    conv = nn.Conv2d(old.in_channels, width, size, 1, int(pad), bias=False)
    shortcut = projection(block.conv1.in_channels, width, block.stride)
    for part in (conv, shortcut[0]):
        assert isinstance(part, nn.Conv2d)
        nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    setattr(block, "conv" + number, conv.to(device))
    setattr(block, "bn" + number, nn.BatchNorm2d(width).to(device))
    name = "shortcut" if isinstance(block, ConvBlock) else "downsample"
    setattr(block, name, shortcut.to(device))

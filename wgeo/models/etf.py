"""A fixed classifier: the vertices of a simplex equiangular tight frame (ETF)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import nn

from ..errors import ArgumentError
from .parts import head_of, require_positive
from .residual import ConvBlock, projection

if TYPE_CHECKING:
    from torchvision.models.resnet import BasicBlock, Bottleneck

    ResidualBlock: TypeAlias = BasicBlock | Bottleneck | ConvBlock


class FixedLinear(nn.Linear):
    """A linear map without bias whose weight is a buffer: saved and moved, but never trained."""

    def __init__(self, weight: torch.Tensor) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_parameter("bias", None)

    def reset_parameters(self) -> None:
        """Do nothing: the weight is fixed."""


def simplex_etf(num_classes: int, dim: int | None = None) -> torch.Tensor:
    """Return K unit vectors in R^d with pairwise cosine -1/(K-1), as rows of a (K, d) tensor.

    W = sqrt(K/(K-1)) (I_K - J/K) P^T  (Papyan, Han and Donoho 2020, definition 1), where J is the
    K x K matrix of ones, and the columns of P are the normalized indicators of K consecutive groups
    of features. With this P, features after a ReLU can align with every class k: P e_k has no
    negative entry and, up to a factor, gives the same logits as row k of W. A random P could
    require negative features.

    Parameters
    ----------
    num_classes : int
        K >= 2.
    dim : int, optional
        d >= K; default K, for which P = I.

    Raises
    ------
    ArgumentError
        K < 2 or d < K.

    Examples
    --------
    >>> import wgeo
    >>> etf = wgeo.models.simplex_etf(3)
    >>> (etf @ etf.T).round(decimals=3).tolist()
    [[1.0, -0.5, -0.5], [-0.5, 1.0, -0.5], [-0.5, -0.5, 1.0]]
    """
    dim = num_classes if dim is None else dim
    require_positive(num_classes=num_classes, dim=dim)
    if num_classes < 2:
        raise ArgumentError("A simplex ETF needs at least two classes.")
    if dim < num_classes:
        raise ArgumentError(
            f"A simplex ETF of {num_classes} classes needs at least {num_classes} features, "
            f"not {dim}."
        )
    group = torch.arange(dim) * num_classes // dim  # (d,), the class of each feature
    p = nn.functional.one_hot(group, num_classes).double()  # (d, K)
    p /= p.norm(dim=0)
    centered = torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes
    return ((num_classes / (num_classes - 1)) ** 0.5 * centered @ p.T).float()


def with_etf_classifier(net: nn.Module, dim: str = "K") -> nn.Module:
    """Return a copy of a network whose classifier is a fixed simplex ETF (Zhu et al. 2021).

    Parameters
    ----------
    net : nn.Module
        With ``dim="keep"``, any network with a linear head; with ``dim="K"``, a network whose last
        residual block is one of torchvision's ResNets or wgeo's CIFAR ResNets.
    dim : ``"K"``, ``"keep"``
        ``"K"``: the last residual block gets K output features instead of d, if d is not K. Its
        last convolution has K filters, and its shortcut becomes a 1 x 1 projection with batch norm.
        At K = 10, this saves 20.7 % of ResNet-18's parameters and 4.5 % of ResNet-50's.
        ``"keep"``: the features are not changed.

    Returns
    -------
    nn.Module
        New layers are randomly initialized; the rest is copied. In the state dict, the fixed
        classifier has the old head's name; `load_checkpoint` recognizes it by the missing bias.

    Raises
    ------
    ArgumentError
        There is no linear head, there are fewer features than classes, or ``dim="K"`` and the last
        block cannot be narrowed.

    Examples
    --------
    >>> import torch
    >>> import wgeo
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> fixed = wgeo.models.with_etf_classifier(net, dim="keep")
    >>> torch.allclose(fixed[-1].weight, wgeo.models.simplex_etf(3, 8))
    True
    >>> [name for name, _ in fixed.named_parameters()]
    ['0.weight', '0.bias']
    """
    if dim not in ("K", "keep"):
        raise ArgumentError(f"dim must be 'K' or 'keep', not {dim!r}.")
    net = copy.deepcopy(net)
    named_head = head_of(net)
    if named_head is None:
        raise ArgumentError(f"{type(net).__name__} has no linear classifier to replace.")
    name, head = named_head
    width = head.out_features if dim == "K" else head.in_features
    if width != head.in_features:
        _narrow(_last_block(net, head.in_features), width)
    classifier = FixedLinear(simplex_etf(head.out_features, width)).to(head.weight.device)
    net.set_submodule(name, classifier)
    return net


def _last_block(net: nn.Module, width: int) -> ResidualBlock:
    from torchvision.models.resnet import BasicBlock, Bottleneck

    candidates = [m for m in net.modules() if isinstance(m, BasicBlock | Bottleneck | ConvBlock)]
    # A block without a final activation belongs to an isotropic network, which has one width.
    if candidates and not isinstance(getattr(candidates[-1], "act2", None), nn.Identity):
        last = _last_conv(candidates[-1])[1]
        if last.out_channels == width:
            return candidates[-1]
    raise ArgumentError(
        f"`dim='K'` narrows the last residual block, but the classifier of {type(net).__name__} "
        "does not read the output of a block of torchvision's ResNets or wgeo's CIFAR ResNets. "
        "Use `dim='keep'`; in training, `classifier='etf-keep'`."
    )


def _last_conv(block: ResidualBlock) -> tuple[str, nn.Conv2d]:
    """Return the last convolution of a block's branch, and the number in its name."""
    from torchvision.models.resnet import Bottleneck

    number = "3" if isinstance(block, Bottleneck) else "2"
    conv = getattr(block, "conv" + number)
    assert isinstance(conv, nn.Conv2d)
    return number, conv


def _narrow(block: ResidualBlock, width: int) -> None:
    """Reduce a residual block to `width` output channels, in place."""
    number, old = _last_conv(block)
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

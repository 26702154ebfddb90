"""The training recipe: objective, learning rate, randomness and augmentation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..arrays.checks import as_count, as_float
from ..errors import ArgumentError
from ..models.parts import evaluating, first_tensor, hooked

SCHEDULES = ("cosine", "onecycle", "constant")
LOSSES = ("ce", "mse")
AUGMENTATIONS = ("none", "crop", "flip", "crop+flip")
DECAYED = ("all", "unnormalized")
PRECISIONS = ("float32", "bfloat16")
_WARM_UP = 0.3  # fraction of a one-cycle schedule in which the rate rises


@dataclass(frozen=True)
class Recipe:
    """Stochastic gradient descent with momentum on loss + (weight_decay / 2) ||theta||^2.

    theta are the parameters that `decayed` selects: by default all of them, including biases and
    batch norms, as in the theory and in torch.

    Attributes
    ----------
    epochs : int
        Number of passes over the data, at least 1.
    lr, momentum, weight_decay : float
        Peak learning rate, above 0; momentum, in [0, 1); weight decay, at least 0.
    batch_size : int
        Maximum number of images per step, at least 1.
    schedule : {"cosine", "onecycle", "constant"}
        See `learning_rate`.
    loss : {"ce", "mse"}
        See `criterion`.
    augment : {"none", "crop", "flip", "crop+flip"}
        See `augment`.
    seed : int
        Random seed of the initialization, the data order and the augmentation, at least 0.
    decayed : {"all", "unnormalized"}
        ``unnormalized`` exempts the weights of convolutions and linear layers followed by a batch
        norm. The network's function does not depend on their scale: decay only shrinks them, and
        the gradient grows until training breaks down (Lobacheva et al. 2021, arXiv:2106.15739).
    precision : {"float32", "bfloat16"}
        ``bfloat16`` applies torch's autocast to the forward and backward passes. Weights, loss,
        optimizer and evaluation keep the network's own precision.

    Raises
    ------
    ArgumentError
        A value is out of range or of the wrong type, or a name is unknown.
    """

    epochs: int = 60
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128
    schedule: str = "cosine"
    loss: str = "ce"
    augment: str = "none"
    seed: int = 0
    decayed: str = "all"
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name, minimum in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            object.__setattr__(self, name, as_count(getattr(self, name), name, minimum))
        for name in ("lr", "momentum", "weight_decay"):
            object.__setattr__(self, name, as_float(getattr(self, name), name))
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ArgumentError(f"lr must be a positive number, not {self.lr}.")
        if not 0 <= self.momentum < 1:
            raise ArgumentError(f"momentum must be at least 0 and below 1, not {self.momentum}.")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ArgumentError(f"weight_decay must be at least 0, not {self.weight_decay}.")
        choices = {
            "schedule": SCHEDULES,
            "loss": LOSSES,
            "augment": AUGMENTATIONS,
            "decayed": DECAYED,
            "precision": PRECISIONS,
        }
        for name, names in choices.items():
            if getattr(self, name) not in names:
                raise ArgumentError(
                    f"Unknown {name} {getattr(self, name)!r}; choose one of {', '.join(names)}."
                )

    def generator(self, epoch: int) -> torch.Generator:
        """Return the generator of all randomness in one epoch."""
        state = np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0]) >> 1)


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate at t = step / steps in [0, 1).

    ``cosine`` is lr (1 + cos(pi t)) / 2 (Loshchilov and Hutter 2017); ``onecycle`` rises from
    lr / 25 to lr over the first 30 %, then falls to lr / 10^4, both along half a cosine (Smith and
    Topin 2019); ``constant`` is lr.
    """
    t = step / steps
    if recipe.schedule == "constant":
        return recipe.lr
    if recipe.schedule == "cosine":
        return _half_cosine(recipe.lr, 0.0, t)
    if t < _WARM_UP:
        return _half_cosine(recipe.lr / 25, recipe.lr, t / _WARM_UP)
    return _half_cosine(recipe.lr, recipe.lr / 1e4, (t - _WARM_UP) / (1 - _WARM_UP))


def _half_cosine(start: float, end: float, t: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * t)) / 2


def parameter_groups(
    module: nn.Module, recipe: Recipe, x: Float[torch.Tensor, "n c h w"]
) -> list[dict[str, Any]]:
    """Return the optimizer's parameter groups: with weight decay, and without."""
    parameters = list(module.parameters())
    exempt = normalized_weights(module, x) if recipe.decayed == "unnormalized" else []
    exempt_ids = {id(weight) for weight in exempt}
    decaying = [p for p in parameters if id(p) not in exempt_ids]
    groups = [{"params": decaying, "weight_decay": recipe.weight_decay}]
    if exempt:
        groups.append({"params": exempt, "weight_decay": 0.0})
    return groups


def normalized_weights(module: nn.Module, x: Float[torch.Tensor, "n c h w"]) -> list[nn.Parameter]:
    """Return the weights of the convolutions and linear layers followed by a batch norm.

    To find them, images `x` are passed through the network in eval mode. A layer is followed by a
    batch norm if each of its outputs is the input of a batch norm, unchanged.
    """
    outputs: list[tuple[nn.Module, tuple[int, int]]] = []
    inputs: set[tuple[int, int]] = set()
    alive: list[torch.Tensor] = []  # so that ids are unique

    def state(tensor: torch.Tensor) -> tuple[int, int]:
        alive.append(tensor)
        return id(tensor), tensor._version  # in-place functions change the version

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensor = first_tensor((*args, *kwargs.values()))
        if tensor is not None:
            inputs.add(state(tensor))

    with evaluating(module), torch.no_grad(), hooked() as keep:
        for layer in module.modules():
            if isinstance(layer, _BatchNorm):
                keep(layer.register_forward_pre_hook(before, with_kwargs=True))
            elif isinstance(layer, _ConvNd | nn.Linear):
                keep(layer.register_forward_hook(lambda own, _, y: outputs.append((own, state(y)))))
        module(x)
    normalized = {id(layer.weight) for layer, out in outputs if out in inputs}
    otherwise = {id(layer.weight) for layer, out in outputs if out not in inputs}
    return [weight for weight in module.parameters() if id(weight) in normalized - otherwise]


def criterion(
    loss: str, logits: Float[torch.Tensor, "n K"], y: Int[torch.Tensor, " n"]
) -> Float[torch.Tensor, ""]:
    """Return the mean loss of a batch.

    ``ce`` is the cross-entropy (1/n) sum_i -log softmax(z_i)[y_i]; ``mse`` the squared error to
    the one-hot labels, 1/(2n) sum_i ||z_i - e_{y_i}||^2, as in the unconstrained feature models.
    """
    if loss == "ce":
        return torch.nn.functional.cross_entropy(logits, y)
    target = torch.nn.functional.one_hot(y, logits.shape[1])
    return (logits - target).square().sum() / (2 * len(y))


def augment(
    x: Float[torch.Tensor, "n c h w"], kind: str, generator: torch.Generator
) -> Float[torch.Tensor, "n c h w"]:
    """Return the images, each shifted or mirrored at random.

    ``crop`` shifts an image in both directions by up to an eighth of its height, or one pixel if
    the height is below 16, and fills with zeros. ``flip`` swaps left and right with probability
    1/2. ``crop+flip`` does both.
    """
    n, _, h, w = x.shape
    rows, columns = torch.arange(h).expand(n, h), torch.arange(w).expand(n, w)
    if "flip" in kind:
        mirrored = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    pad = max(1, h // 8) if "crop" in kind else 0
    if pad:
        x = torch.nn.functional.pad(x, (pad, pad, pad, pad))
        rows = rows + torch.randint(2 * pad + 1, (n, 1), generator=generator)
        columns = columns + torch.randint(2 * pad + 1, (n, 1), generator=generator)
    rows, columns = rows.to(x.device), columns.to(x.device)
    samples = torch.arange(n, device=x.device)[:, None, None]
    images = x.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]]
    return images.permute(0, 3, 1, 2).contiguous()

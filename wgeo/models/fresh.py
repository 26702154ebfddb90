"""Untrained copies of networks, the *fresh networks* of the glossary, for ``reference="init"``."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import suppress

import torch
from torch import nn

from ..errors import WgeoError
from .parts import evaluating

_BatchNorm = nn.modules.batchnorm._BatchNorm


def untrained(module: nn.Module, seed: int = 0) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a randomly initialized copy, on the CPU, and the names of parameters left unchanged.

    The method ``reset_parameters`` of every module is called. In PyTorch's layers, it resets batch
    statistics and draws weights from the default initialization, which the network's author may
    not have used. Parameters that no such method resets (a class token, a layer scale, a
    parametrized weight) keep their trained values. A checkpoint of epoch 0 is therefore a better
    reference, if there is one.

    Parameters
    ----------
    module : nn.Module
        It is copied, not changed.
    seed : int
        Random seed of the weights.

    Raises
    ------
    WgeoError
        The network cannot be copied.

    Examples
    --------
    >>> import torch
    >>> import wgeo
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> fresh, unchanged = wgeo.models.untrained(net, seed=1)
    >>> torch.equal(fresh[0].weight, net[0].weight), unchanged
    (False, ())
    """
    try:
        fresh = copy.deepcopy(module).cpu()  # so that one seed gives the same weights on any device
    except RuntimeError as error:
        raise WgeoError(f"{type(module).__name__} cannot be copied: {error}") from error
    trained_values = {name: p.detach().clone() for name, p in fresh.named_parameters()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for parameter in fresh.parameters():
            if parameter.is_floating_point():
                parameter.fill_(torch.nan)  # a value that is still NaN afterwards was not reset
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed all devices
        for submodule in fresh.modules():
            private = getattr(submodule, "_reset_parameters", None)
            reset = getattr(submodule, "reset_parameters", private)
            if callable(reset):
                with suppress(TypeError, RuntimeError):  # it needs arguments, or fails
                    reset()
        unchanged_names = []
        for name, parameter in fresh.named_parameters():
            if bool(parameter.isnan().any()):
                parameter.copy_(trained_values[name])
                unchanged_names.append(name)
    return fresh, tuple(unchanged_names)


def reestimate_statistics(module: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Set the running statistics of batch normalization to averages over `batches`, in one pass.

    After a reset, the running statistics are mean 0 and variance 1. With these, a network in eval
    mode is not the function from which training starts, since training normalizes with the
    statistics of each batch. In this pass, batch normalization does so too; everything else,
    including dropout, is in eval mode. Afterwards, every module is in its previous mode. Networks
    without running statistics are not changed.

    Parameters
    ----------
    module : nn.Module
    batches : iterable of Tensor, (b, ...)
        Normalized inputs on the network's device; each batch has the same weight in the averages.
    """
    norms = [
        submodule
        for submodule in module.modules()
        if isinstance(submodule, _BatchNorm) and submodule.running_mean is not None
    ]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    try:
        with evaluating(module), torch.no_grad():
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the average over batches, not a moving one
                norm.training = True
            for batch in batches:
                module(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

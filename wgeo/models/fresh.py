"""Untrained copies of networks, for comparison."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn

from ..errors import WgeoError

_BatchNorm = nn.modules.batchnorm._BatchNorm


def untrained(module: nn.Module, seed: int = 0) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a copy with fresh weights, on the CPU, and the names of parameters not reset.

    Every module is reset by its own ``reset_parameters``, PyTorch's default initialization,
    including batch statistics. The network's author may have used another initialization, and
    parameters without a reset method (a class token, a layer scale, a parametrized weight) keep
    their trained values; if there is a checkpoint of epoch 0, it is the better reference.

    Raises
    ------
    WgeoError
        The network cannot be copied.
    """
    try:
        fresh = copy.deepcopy(module).cpu()  # so that one seed gives the same weights on any device
    except RuntimeError as error:
        raise WgeoError(f"{type(module).__name__} cannot be copied: {error}") from error
    trained = {name: p.detach().clone() for name, p in fresh.named_parameters()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for parameter in fresh.parameters():
            if parameter.is_floating_point():
                parameter.fill_(torch.nan)  # values still NaN afterwards were not reset
        torch.manual_seed(seed)
        for part in fresh.modules():
            _reset(part)
        not_reset = []
        for name, parameter in fresh.named_parameters():
            if bool(parameter.isnan().any()):
                parameter.copy_(trained[name])
                not_reset.append(name)
    return fresh, tuple(not_reset)


def _reset(part: nn.Module) -> None:
    reset = getattr(part, "reset_parameters", getattr(part, "_reset_parameters", None))
    if callable(reset):
        try:
            reset()
        except (TypeError, RuntimeError):  # it needs arguments, or is hidden by a hook
            return


def reestimate_statistics(module: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Set the running statistics of batch normalization to those of `batches`, in one pass.

    A network with fresh weights and reset statistics (mean 0, variance 1) is a different function
    from the one at the start of training. During the pass each layer normalizes by the batch's
    statistics and stores their average over batches; everything else, including dropout, is in
    eval mode. Networks without running statistics are unchanged. Modes are restored.

    Parameters
    ----------
    module : nn.Module
    batches : iterable of Tensor, (b, ...)
        Normalized inputs on the network's device; all batches have equal weight, whatever their
        size.
    """
    norms = [
        part
        for part in module.modules()
        if isinstance(part, _BatchNorm) and part.running_mean is not None
    ]
    if not norms:
        return
    modes = [(part, part.training) for part in module.modules()]
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the average over batches, not a moving one
        norm.training = True
    try:
        with torch.no_grad():
            for batch in batches:
                module(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for part, training in modes:
            part.training = training

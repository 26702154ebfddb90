"""The branch of a residual block as a map: without the shortcut, and without what follows the sum.

If a block a(x + F(x)) with an activation a has the Jacobian J, then J - I is not the Jacobian of
the branch: for every unit that a ReLU sets to 0, it has -1 on the diagonal, whatever the branch
computes. The activation, a module or a function, is therefore removed, and the branch's Jacobian is
multiplied by the activation's derivative: a'(x + F(x)) F'(x) (Li and Papyan 2023).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import ArgumentError
from ...features.residual_blocks import (
    Activations,
    BlockSpec,
    copied,
    evaluating,
    hooked,
    returned,
    run,
)
from ...runtime.memory import OUT_OF_MEMORY
from ..jacobian import Map, jvp

_ROUNDING = 1e-9  # relative difference attributed to rounding in float64


@dataclass(frozen=True, eq=False)
class Visit:
    """A call of a block on a batch of points: its arguments, and the tensor that it returned.

    Attributes
    ----------
    spec : BlockSpec
    part : nn.Module
    args, kwargs : tuple, dict
    x, y : Tensor, (n, ...)
        The argument that the shortcut adds to the branch, and the output.
    """

    spec: BlockSpec
    part: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    x: torch.Tensor
    y: torch.Tensor

    @property
    def keeps_space(self) -> bool:
        """Whether the output lies in the space of the input, with the samples on the first axis."""
        return self.x.shape == self.y.shape and self.spec.shortcut is None and self.x.ndim > 1


@dataclass(frozen=True, eq=False)
class Branch:
    """The map F of a block a(c x + F(x)) at some points, in float64.

    Attributes
    ----------
    map : callable, (n, ...) -> (n, ...)
        x -> F(x). The factor c is 1 unless the block scales its sum, and 0 without a shortcut. If a
        final ReLU cannot be removed, F(x) is multiplied by its derivative.
    x : Tensor, (n, ...)
    gate : Tensor, (n, ...), or None
        a'(c x + F(x)), if the Jacobian of `map` is still to be multiplied by it; otherwise None.
    end : str or None
        Name of the activation function; None without one.
    """

    map: Map
    x: torch.Tensor
    gate: torch.Tensor | None
    end: str | None


def visits(
    module: nn.Module, x: torch.Tensor, specs: Sequence[BlockSpec]
) -> tuple[list[Visit], list[str]]:
    """Return the calls of blocks in one forward pass, and the names of the other blocks.

    Among these are sums in a forward method, and modules that are called several times.
    """
    parts = dict(module.named_modules())
    known_blocks = [spec for spec in specs if spec.name in parts]
    calls: dict[str, tuple[Any, Any]] = {}
    outputs: dict[str, torch.Tensor | None] = {}

    def before(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[name] = copied(args), copied(kwargs)

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            y = returned(out)
            outputs[name] = None if y is None else y.detach().clone()

        return hook

    with evaluating(module), torch.no_grad(), hooked() as keep:
        for spec in known_blocks:
            keep(parts[spec.name].register_forward_pre_hook(before(spec.name), with_kwargs=True))
            keep(parts[spec.name].register_forward_hook(after(spec.name)))
        run(module, x)
    result = []
    for spec in known_blocks:
        args, kwargs = calls[spec.name]
        key, y = spec.argument, outputs[spec.name]
        value = kwargs.get(key) if isinstance(key, str) else args[key]
        if isinstance(value, torch.Tensor) and y is not None and len(value) == len(x):
            result.append(Visit(spec, parts[spec.name], args, kwargs, value, y))
    names = {visit.spec.name for visit in result}
    return result, [spec.name for spec in specs if spec.name not in names]


def branch_of(visit: Visit, rows: slice, *, gated: bool) -> Branch:
    """Return the branch of a block at some of the points.

    Parameters
    ----------
    visit : Visit
    rows : slice
    gated : bool
        Whether to multiply the Jacobian by the derivative of the last activation. If this is a ReLU
        that cannot be removed, `gated` must be true.

    Raises
    ------
    ArgumentError
        The block cannot be run alone in float64, its samples influence each other, or it ends in a
        ReLU that cannot be removed although `gated` is false.
    """
    name, spec = visit.spec.name, visit.spec
    x = visit.x[rows].double()
    block = _in_float64(visit, rows)
    try:
        with torch.no_grad():
            with Activations() as activations:
                out = block(x)
            alone = block(x[:1]) if len(x) > 1 else out
    except OUT_OF_MEMORY:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise ArgumentError(f"Block {name!r} cannot be run alone in float64: {error}") from error
    if bool((out[:1] - alone[:1]).abs().max() > _ROUNDING * out.abs().max()):
        raise ArgumentError(
            f"The output of block {name!r} for a sample depends on the other samples of its batch, "
            "so it has no Jacobian at a point."
        )
    scale = spec.scale if spec.residual else 0.0
    if activations.hides_relu(out):
        if not gated:
            raise ArgumentError(
                f"The ReLU that ends block {name!r} cannot be removed; use jacobian='residual', "
                "which does not require its removal."
            )
        gate = (out > 0).to(out)
        return Branch(lambda z: gate * (block(z) - scale * z), x, None, "relu")
    if not activations.end(out):
        return Branch(lambda z: block(z) - scale * z, x, None, None)
    last, function = activations.count - 1, activations.function
    assert function is not None

    def before(z: torch.Tensor) -> torch.Tensor:
        with Activations(skipped=last):
            return block(z)

    with torch.no_grad():
        total = before(x)
    ones = torch.ones_like(total)
    gate = jvp(function, total, ones).detach()
    return Branch(lambda z: before(z) - scale * z, x, gate if gated else None, activations.name)


def _in_float64(visit: Visit, rows: slice) -> Map:
    """Return a copy of a block in float64 and eval mode, as a function of its main input."""
    part = copy.deepcopy(visit.part).double().eval().requires_grad_(False)
    n, key = len(visit.x), visit.spec.argument

    def local_rows(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        value = value.double() if value.is_floating_point() else value
        return value[rows] if value.ndim and len(value) == n else value

    def block(z: torch.Tensor) -> torch.Tensor:
        # The block receives a copy, since it may overwrite its input.
        args = [
            z.clone() if k == key else _truncated(local_rows(v), z)
            for k, v in enumerate(visit.args)
        ]
        kwargs = {
            k: z.clone() if k == key else _truncated(local_rows(v), z)
            for k, v in visit.kwargs.items()
        }
        out = returned(part(*args, **kwargs))
        if out is None:
            raise TypeError("it does not return one tensor")
        return out

    return block


def _truncated(value: Any, z: torch.Tensor) -> Any:
    """Return the first rows of an argument that has more rows than `z`, one for each row of `z`."""
    has_rows = isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) > len(z)
    return value[: len(z)] if has_rows else value

"""The branch of a residual block as a map: without the shortcut, and without what follows the sum.

If a block ReLU(x + F(x)) has the Jacobian J, then J - I is not the Jacobian of the branch F: J - I
has -1 on the diagonal for every unit that the ReLU sets to 0, whatever F computes. The last
activation a of a block is therefore removed, and F's Jacobian is multiplied by the derivative of a:
a'(x + F(x)) F'(x) (Li and Papyan 2023).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import nn

from ..errors import ArgumentError
from ..features.residual_blocks import Activations, BlockSpec, copied, returned, run
from ..models.parts import evaluating, hooked
from ..runtime.memory import OUT_OF_MEMORY
from .jacobian import Jacobian, Map, jvp

# Returns the coordinates (n, d) of features (n, ...) in an orthonormal basis of a subspace.
Coordinates = Callable[[torch.Tensor], torch.Tensor]
_ROUNDING = 1e-9  # relative difference attributed to rounding in float64


@dataclass(frozen=True, eq=False)
class Visit:
    """A call of a block on a batch of points: its arguments, and the tensor that it returned."""

    spec: BlockSpec
    part: nn.Module
    arguments: dict[int | str, Any]  # by position or keyword
    key: int | str  # position or keyword of `x`
    with_rows: frozenset[int | str]  # keys of the arguments with a row per point
    x: torch.Tensor  # the argument that the shortcut adds to the branch
    y: torch.Tensor

    @property
    def keeps_space(self) -> bool:
        """Whether the output lies in the space of the input."""
        return self.x.shape == self.y.shape and self.spec.shortcut is None and self.x.ndim > 1

    @property
    def has_rows_beside_x(self) -> bool:
        """Whether another argument has a row per point."""
        return bool(self.with_rows - {self.key})

    def in_float64(self, rows: slice = slice(None)) -> Map:
        """Return a copy of the block in float64 and eval mode, as a function of its argument `x`.

        The function takes one value of `x` for each of the points `rows`, or for the first few of
        them only. The other arguments are those of this call.
        """
        part = copy.deepcopy(self.part).double().eval().requires_grad_(False)

        def widened(value: Any) -> Any:
            floating = isinstance(value, torch.Tensor) and value.is_floating_point()
            return value.double() if floating else value

        def block(z: torch.Tensor) -> torch.Tensor:
            # The block receives a copy, since it may overwrite its input.
            values = {
                key: widened(value[rows][: len(z)] if key in self.with_rows else value)
                for key, value in self.arguments.items()
            }
            values[self.key] = z.clone()
            args = [value for key, value in values.items() if isinstance(key, int)]
            kwargs = {key: value for key, value in values.items() if isinstance(key, str)}
            out = returned(part(*args, **kwargs))
            if out is None:
                raise TypeError("it does not return one tensor")
            return out

        return block


@dataclass(frozen=True, eq=False)
class Branch:
    """The map F of a block a(c x + F(x)) at some points, in float64.

    c is 0 without a shortcut. Otherwise c is the factor by which the block scales its sum, often 1.
    """

    map: Map  # F, or F times the constant a'(c x + F(x))
    x: torch.Tensor
    end: str | None  # name of the activation a


def visits(
    module: nn.Module, x: torch.Tensor, specs: Sequence[BlockSpec]
) -> tuple[list[Visit], dict[str, str]]:
    """Return the blocks' calls in one forward pass, and why the other blocks are left out."""
    parts = dict(module.named_modules())
    blocks = {spec.name: parts[spec.name] for spec in specs if spec.name in parts}
    calls, outputs = _calls(module, blocks, x)
    # By chance, the first axis of an argument can be as long as the points. A second pass, with
    # another number of points, excludes this.
    other = x[:1] if len(x) > 1 else torch.cat([x, x])
    other_calls, _ = _calls(module, blocks, other)
    result, left_out = [], {}
    for spec in specs:
        if spec.name not in blocks:
            left_out[spec.name] = (
                "it is a sum in a forward method, not a module, or its module runs several times"
            )
            continue
        arguments, y, key = calls[spec.name], outputs[spec.name], spec.argument
        if key not in arguments:  # a block without a shortcut, called with keywords only
            key = next((k for k, v in arguments.items() if isinstance(v, torch.Tensor)), key)
        value, others = arguments.get(key), other_calls[spec.name]
        numbers = [(len(x),), (len(other),)]
        with_rows = frozenset(
            k for k, v in arguments.items() if _first_axes(v, others.get(k)) == numbers
        )
        if not isinstance(value, torch.Tensor) or y is None:
            left_out[spec.name] = "it does not map a tensor to one tensor"
        elif key not in with_rows:
            left_out[spec.name] = "the first axis of its input is not that of the samples"
        else:
            part = blocks[spec.name]
            result.append(Visit(spec, part, arguments, key, with_rows, value, y))
    return result, left_out


def _first_axes(*values: Any) -> list[tuple[int, ...]]:
    """Return the lengths of the first axes of those values that are tensors."""
    return [tuple(v.shape[:1]) for v in values if isinstance(v, torch.Tensor)]


def _calls(
    module: nn.Module, blocks: Mapping[str, nn.Module], x: torch.Tensor
) -> tuple[dict[str, dict[int | str, Any]], dict[str, torch.Tensor | None]]:
    """Return the arguments and the output of every block in one forward pass."""
    calls: dict[str, dict[int | str, Any]] = {}
    outputs: dict[str, torch.Tensor | None] = {}

    def before(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pairs: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        calls[name] = {key: copied(value) for key, value in pairs}

    def after(name: str, _: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        y = returned(out)
        outputs[name] = None if y is None else y.detach().clone()

    with evaluating(module), torch.no_grad(), hooked() as keep:
        for name, part in blocks.items():
            keep(part.register_forward_pre_hook(partial(before, name), with_kwargs=True))
            keep(part.register_forward_hook(partial(after, name)))
        run(module, x)
    return calls, outputs


def runs_of(calls: Sequence[Visit]) -> list[list[Visit]]:
    """Return the runs: lists of consecutive blocks in one space.

    Each block of a run is applied to the output of the block before it.
    """
    runs: list[list[Visit]] = []
    previous: Visit | None = None
    for visit in calls:
        if visit.keeps_space:
            if not (previous and previous.keeps_space and torch.equal(previous.y, visit.x)):
                runs.append([])
            runs[-1].append(visit)
        previous = visit
    return runs


def branch_of(visit: Visit, rows: slice, *, gated: bool) -> Branch:
    """Return the branch of a block at some of the points.

    If `gated`, it is multiplied by the derivative of the last activation at these points.

    Raises
    ------
    ArgumentError
        The block cannot be run alone in float64, its samples influence each other, or `gated` is
        false and the block ends in a ReLU that cannot be removed.
    """
    name, spec = visit.spec.name, visit.spec
    x = visit.x[rows].double()
    block = visit.in_float64(rows)
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
        return Branch(lambda z: gate * (block(z) - scale * z), x, "relu")
    if not activations.ended_in(out):
        return Branch(lambda z: block(z) - scale * z, x, None)
    last, function = activations.count - 1, activations.function
    assert function is not None

    def before(z: torch.Tensor) -> torch.Tensor:
        with Activations(skipped=last):
            return block(z)

    if not gated:
        return Branch(lambda z: before(z) - scale * z, x, activations.name)
    with torch.no_grad():
        total = before(x)
    slope = jvp(function, total, torch.ones_like(total)).detach()
    return Branch(lambda z: slope * (before(z) - scale * z), x, activations.name)


class ResidualJacobian(Jacobian):
    """Products with a block's residual Jacobian, in coordinates (n, d) of its features."""

    def __init__(self, branch: Branch, coordinates: Coordinates) -> None:
        super().__init__(branch.map, branch.x)
        self._coordinates = coordinates
        # The coordinates are linear, so their pullback is their adjoint, the embedding.
        of_points, self._embed = torch.func.vjp(coordinates, branch.x)[:2]
        self.dimension = of_points.shape[1]

    def forward(self, v: Float[torch.Tensor, "n d"]) -> Float[torch.Tensor, "n d"]:
        return self._coordinates(super().forward(self._embedded(v)))

    def transpose(self, v: Float[torch.Tensor, "n d"]) -> Float[torch.Tensor, "n d"]:
        return self._coordinates(super().transpose(self._embedded(v)))

    def _embedded(self, v: torch.Tensor) -> torch.Tensor:
        return self._embed(v)[0].contiguous()

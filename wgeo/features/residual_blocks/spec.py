"""Specification of the layers to follow in a network."""

from __future__ import annotations

from dataclasses import dataclass

from .sums import Address


@dataclass(frozen=True)
class BlockSpec:
    """A block of a network: a module, one of several calls of a module, or a sum in a forward.

    Attributes
    ----------
    name : str
        The module's name; ``block[1]`` for the second call of a module that runs several times;
        ``res1+x`` for the sum of x and the output of the module ``res1`` for x.
    residual : bool
        Whether the block adds a shortcut to its branch.
    shortcut : str or None
        Name of the module that is the shortcut; None for the identity, or without a shortcut.
    activated : bool
        Whether an activation after the sum was seen by its effect on a few images. A ReLU has no
        effect if the shortcut's values are not negative.
    argument : int or str
        Position or keyword of the argument that the identity returns; for a sum, index of the
        identity summand.
    module : str
        Name of the module that is the block; empty for a sum.
    call : int
        Index of the module's call.
    sum : (str, int, int) or None
        The address of the sum; None for a module.
    tail : tuple of str
        The functions directly after the sum: a scaling, an activation.
    scale : float
        Factor c of a block c (x + F(x)); 1 without one.
    """

    name: str
    residual: bool
    shortcut: str | None
    activated: bool = False
    argument: int | str = 0
    module: str = ""
    call: int = 0
    sum: Address | None = None
    tail: tuple[str, ...] = ()
    scale: float = 1.0

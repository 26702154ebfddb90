"""Which layers of a network are followed, and how each is read."""

from __future__ import annotations

from dataclasses import dataclass

from .sums import Address


@dataclass(frozen=True)
class BlockSpec:
    """A block of a network: a module, one of several calls of a module, or a sum in a forward.

    Attributes
    ----------
    name : str
        The module's name; ``block[1]`` for the second call of one that runs several times;
        ``res1+x`` for the sum of a tensor and what the module ``res1`` made of it.
    residual : bool
        Whether it adds a shortcut to what it computes.
    shortcut : str or None
        Name of the module that is its shortcut; None if that is the identity (or absent).
    activation : str or None
        Name of the activation module that ends the block; None if nothing follows the sum.
    argument : int or str
        What the identity is of: the argument at this place or of this keyword; of a sum, the
        summand at this place.
    module : str
        The module that computes it; empty for a sum.
    call : int
        Which call of the module.
    sum : (str, int, int) or None
        The sum's address.
    tail : tuple of str
        The functions that follow the sum at once: a scaling, an activation.
    """

    name: str
    residual: bool
    shortcut: str | None
    activation: str | None
    argument: int | str = 0
    module: str = ""
    call: int = 0
    sum: Address | None = None
    tail: tuple[str, ...] = ()

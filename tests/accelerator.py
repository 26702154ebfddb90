"""An emulated accelerator: device code runs without a GPU, and what it asks of one is counted.

Importing this module registers the device "emu" with torch (2.14 or later; the interface is
experimental). The numbers of its tensors lie in host memory, but the tensors refuse what CUDA's
refuse: to be mixed with the CPU's, to become NumPy arrays, to be drawn by a generator of the CPU.
Every operation on them passes through `EmulatedTensor.__torch_dispatch__`, which counts it.

It says nothing about speed, streams, collective operations, or how a GPU rounds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

DEVICE = "emu"
# CUDA, too, accepts tensors of several devices here.
_BETWEEN_DEVICES = {"copy_", "_to_copy", "index", "index_put_", "_index_put_impl_"}
_COPIES = {"copy_", "_to_copy"}
# The host needs the result, or its size, before it can go on; or CUDA's version, which calls a
# library of linear algebra, checks on the host whether that failed.
_AWAITED = {
    *("_local_scalar_dense", "equal", "nonzero", "masked_select", "bincount", "_unique2"),
    *("unique_dim", "unique_consecutive", "_linalg_svd", "_linalg_eigh", "linalg_inv_ex"),
    *("linalg_eig", "linalg_lstsq", "linalg_pinv"),
}
_WITHOUT_KERNEL = {
    *("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"),
    *("squeeze_", "unsqueeze_", "t_", "transpose_", "detach_"),
}


@dataclass
class Tally:
    """What was asked of the device.

    Attributes
    ----------
    launches : Counter
        Operations by name, except those that run no kernel: views and allocations.
    waits : Counter
        Operations for which the host waits until the device has done all earlier work: it reads a
        number or a size that depends on the data, or copies between the two.
    """

    launches: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)


_tallies: list[Tally] = []


@contextmanager
def counted() -> Iterator[Tally]:
    """Count what is asked of the device while the block lasts."""
    tally = Tally()
    _tallies.append(tally)
    try:
        yield tally
    finally:
        _tallies.remove(tally)


class EmulatedTensor(torch.Tensor):
    """A tensor of the device; `host` holds its numbers."""

    host: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> EmulatedTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            host.stride(),
            host.storage_offset(),
            dtype=host.dtype,
            device=f"{DEVICE}:0",
        )
        tensor.host = host
        return tensor

    def __repr__(self) -> str:
        return f"{DEVICE}{tuple(self.host.shape)}"

    def tolist(self) -> Any:  # torch's own does not accept subclasses
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(
        cls, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation with the numbers on the host, after the checks that a device makes."""
        kwargs = dict(kwargs or {})
        name, view = _described(op)
        given: dict[int, torch.Tensor] = {}  # operations in place return what they were given
        on_host = False

        def to_host(value: Any) -> Any:
            nonlocal on_host
            if isinstance(value, EmulatedTensor):
                given[id(value.host)] = value
                return value.host
            on_host |= isinstance(value, torch.Tensor) and value.dim() > 0
            on_host |= isinstance(value, torch.Generator)
            return value

        def to_device(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            return given[id(value)] if id(value) in given else cls(value)

        host_args, host_kwargs = _mapped(to_host, args), _mapped(to_host, kwargs)
        if on_host and name not in _BETWEEN_DEVICES:
            raise RuntimeError(
                f"Expected all tensors to be on the same device: {DEVICE}, cpu ({op})"
            )
        target = torch.device(kwargs.get("device") or DEVICE).type
        _count(name, view, args, between=name in _COPIES and (on_host or target == "cpu"))
        if "device" in kwargs:
            host_kwargs["device"] = "cpu"
        host_kwargs.pop("pin_memory", None)
        result = op(*host_args, **host_kwargs)
        return result if target == "cpu" else _mapped(to_device, result)


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to what containers of arguments or results contain."""
    if isinstance(value, dict):
        return {key: _mapped(function, each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(function, each) for each in value] if value else value
    return function(value)


@cache
def _described(op: Any) -> tuple[str, bool]:
    """Return the name of an operation, and whether no kernel runs for it."""
    name = op._schema.name.removeprefix("aten::")
    aliases = [out.alias_info for out in op._schema.returns]
    view = any(alias is not None and not alias.is_write for alias in aliases)
    return name, view or name in _WITHOUT_KERNEL


def _count(name: str, view: bool, args: tuple[Any, ...], between: bool) -> None:
    masks = name in ("index", "index_put_", "_index_put_impl_") and any(
        each is not None and each.dtype is torch.bool for each in args[1]
    )
    for tally in _tallies:
        if not view:
            tally.launches[name] += 1
        if between or masks or name in _AWAITED:
            tally.waits[name] += 1


def _empty(size: Any, *, dtype: torch.dtype | None = None, **_: Any) -> EmulatedTensor:
    return EmulatedTensor(torch.empty(size, dtype=dtype or torch.get_default_dtype()))


def _empty_strided(
    size: Any, stride: Any, *, dtype: torch.dtype | None = None, **_: Any
) -> EmulatedTensor:
    dtype = dtype or torch.get_default_dtype()
    return EmulatedTensor(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: torch.Tensor, target: torch.Tensor, *_: Any) -> torch.Tensor:
    _count("copy_", False, (), between=True)
    assert isinstance(target, EmulatedTensor)
    target.host.copy_(source)
    return target


_setup_privateuseone_for_python_backend(DEVICE)
_operators = torch.library.Library("aten", "IMPL")  # what creates tensors begins with one of these
_operators.impl("empty.memory_format", _empty, "PrivateUse1")
_operators.impl("empty_strided", _empty_strided, "PrivateUse1")
_operators.impl("_copy_from", _copy_from, "PrivateUse1")  # of lists, which `torch.tensor` reads

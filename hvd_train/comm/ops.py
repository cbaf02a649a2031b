"""The arithmetic of reductions, and how tensors are divided among ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

Op = Literal["mean", "sum", "min", "max", "product"]
OPS: tuple[Op, ...] = get_args(Op)

HALVES = (torch.float16, torch.bfloat16)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_COMPLEX = (torch.complex64, torch.complex128)
REDUCIBLE = (torch.bool, *_INTEGERS, *HALVES, torch.float32, torch.float64, *_COMPLEX)

COMBINE: dict[Op, Callable[..., Tensor]] = {
    "mean": torch.add,
    "sum": torch.add,
    "min": torch.minimum,
    "max": torch.maximum,
    "product": torch.mul,
}
"""How each reduction combines two tensors elementwise. The mean is divided at the end."""

_CHUNK = 1 << 30
"""Elements in one call of MPI, whose counts are C ints before version 4."""


def check_op(dtype: torch.dtype, op: str) -> None:
    """Raise ValueError if `op` is unknown or not defined for `dtype`."""
    if op not in OPS:
        raise ValueError(f"unknown reduction '{op}' (choices: {', '.join(OPS)})")
    if dtype not in REDUCIBLE:
        raise ValueError(f"{dtype} tensors cannot be reduced (choices: {', '.join(map(str, REDUCIBLE))})")
    if op == "mean" and not (dtype.is_floating_point or dtype.is_complex):
        raise ValueError(f"the mean of {dtype} tensors is not defined: use op='sum', or convert to a float")
    if op == "sum" and dtype == torch.bool:
        raise ValueError("the sum of bool tensors is not defined: use op='max' for any and op='min' for all")
    if op not in ("mean", "sum") and dtype.is_complex:
        raise ValueError(f"op='{op}' is not defined for complex tensors")


def reduce_in_order(parts: Sequence[Tensor], op: Op) -> Tensor:
    """Reduce `parts` from first to last, so that results are reproducible to the bit.

    Halves accumulate in float32.
    """
    dtype = parts[0].dtype
    total = parts[0].to(torch.float32 if dtype in HALVES else dtype, copy=True)
    for part in parts[1:]:
        COMBINE[op](total, part, out=total)
    if op == "mean":
        total /= len(parts)
    return total.to(dtype)


def reduce_into(parts: list[Tensor], op: Op) -> None:
    """Replace each of `parts` by their reduction."""
    first, *others = parts
    if first.dtype in HALVES or op not in ("mean", "sum"):
        first.copy_(reduce_in_order(parts, op))
    else:
        for other in others:
            first.add_(other)
        if op == "mean":
            first.div_(len(parts))
    for other in others:
        other.copy_(first)


def shares(total: int, parts: int) -> list[int]:
    """Split `total` into `parts` sizes that differ by at most one, the larger ones first."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def as_bytes(flat: Tensor) -> Tensor:
    """Return a view of a contiguous flat tensor as uint8."""
    return flat.view(torch.uint8)


def chunks(flat: Tensor) -> list[Tensor]:
    """Split `flat` into consecutive non-empty views, each short enough for one call of MPI."""
    return [flat[start : start + _CHUNK] for start in range(0, flat.numel(), _CHUNK)]

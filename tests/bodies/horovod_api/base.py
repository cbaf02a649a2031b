"""Tools of the bodies: contributions, exact oracles, and which body runs on which implementation.

A body takes `hvd`, a module with the API of `horovod.torch` that is initialized with dynamic
process sets, and runs on every rank. Contributions are small integers, so that sums are exact in
every dtype and order.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from mpi4py import MPI
from torch import Tensor

from tests.bodies.comm import contribution

Hvd = Any
Body = Callable[[Hvd], None]

OURS = "hvd_train.torch"
WORLD = MPI.COMM_WORLD

REDUCIBLE = (torch.int32, torch.int64, torch.float16, torch.float32, torch.float64)
"""The dtypes that Horovod reduces."""

ALSO_REDUCIBLE = (torch.uint8, torch.int8, torch.int16, torch.bfloat16)
"""The dtypes that only ddl reduces."""

MOVABLE = (torch.uint8, torch.int8, torch.int16, *REDUCIBLE)
"""The dtypes that Horovod gathers, broadcasts and exchanges."""

ALSO_MOVABLE = (torch.bool, torch.bfloat16)
"""The dtypes that only ddl gathers, broadcasts and exchanges."""

SHAPES = [(1,), (7,), (0,), (2, 3), (0, 3), (3, 0), (5, 2, 3)]


def ours_only(reason: str) -> Callable[[Body], Body]:
    """Mark a body that runs on ddl only. `reason` describes the behaviour of Horovod."""

    def mark(body: Body) -> Body:
        body.ours_only = reason  # type: ignore[attr-defined]
        return body

    return mark


def bodies(namespace: dict[str, Any]) -> list[Body]:
    """Return the functions of a module whose single parameter is `hvd`, in order."""
    return [
        function
        for name, function in namespace.items()
        if inspect.isfunction(function)
        and function.__module__ == namespace["__name__"]
        and list(inspect.signature(function).parameters) == ["hvd"]
        and not name.startswith("_")
    ]


def reductions(hvd: Hvd) -> tuple[Any, ...]:
    return hvd.Average, hvd.Sum, hvd.Min, hvd.Max, hvd.Product


def reduced(hvd: Hvd, op: Any, make: Callable[[int], Tensor], ranks: Iterable[int] | None = None) -> Tensor:
    """Return the reduction of `make(rank)` over `ranks` (default: all), the oracle.

    A mean of integers is truncated towards zero.
    """
    parts = torch.stack([make(rank) for rank in (range(hvd.size()) if ranks is None else ranks)])
    wide = parts.double() if parts.is_floating_point() else parts.long()
    if op == hvd.Average:
        return (wide.sum(0) / len(parts)).to(parts.dtype)
    reduce = {hvd.Sum: torch.sum, hvd.Min: torch.amin, hvd.Max: torch.amax, hvd.Product: torch.prod}
    return reduce[op](wide, 0).to(parts.dtype)


def rows(numel: int, parts: int) -> list[int]:
    """Return the number of rows that each of `parts` ranks gets of `numel`.

    The first ranks get the rest.
    """
    return [numel // parts + (part < numel % parts) for part in range(parts)]


def same(found: Tensor, expected: Tensor, what: object = "") -> None:
    assert found.dtype == expected.dtype, f"{what}: {found.dtype} is not {expected.dtype}"
    assert found.shape == expected.shape, f"{what}: {found.shape} is not {expected.shape}"
    assert torch.equal(found, expected), f"{what}: {found} is not {expected}"


def all_same(found: Sequence[Tensor], expected: Sequence[Tensor], what: object = "") -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        same(a, b, what)


def refuses(hvd: Hvd, call: Callable[[], object]) -> str:
    """Assert that every rank gets a HorovodInternalError and can go on, and return its text."""
    with pytest.raises(hvd.HorovodInternalError) as caught:
        call()
    works(hvd)
    return str(caught.value)


def works(hvd: Hvd) -> None:
    """Assert that a reduction over all ranks gives the right result."""
    same(hvd.allreduce(torch.tensor([1.0 + hvd.rank()]), op=hvd.Sum, name="works"), _total(hvd.size()))


def _total(size: int) -> Tensor:
    return torch.tensor([size * (size + 1) / 2])


def gather(value: Any) -> list[Any]:
    """Return every rank's `value`, without the code under test."""
    return WORLD.allgather(value)


__all__ = [
    "ALSO_MOVABLE", "ALSO_REDUCIBLE", "MOVABLE", "OURS", "REDUCIBLE", "SHAPES", "WORLD", "Body", "Hvd",
    "all_same", "bodies", "contribution", "gather", "ours_only", "reduced", "reductions", "refuses", "rows", "same", "works",
]  # fmt: skip

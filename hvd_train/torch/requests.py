"""Requests of ranks and the responses that all ranks carry out: the values of the negotiation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

ITEMSIZE = {
    "uint8": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8, "bool": 1,
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
}  # fmt: skip
"""Bytes of an element of each dtype that the operations support."""

OPS = ("Average", "Sum", "Adasum", "Min", "Max", "Product")
"""Names of the reductions. The index is the public value, such as `hvd.Sum`."""

ANY = -1
"""Placeholder in a shape for a dimension that may differ between ranks."""


class Spec(NamedTuple):
    """The parameters of a request, equal on all ranks that agree.

    A request has one tensor, or all tensors of a group.
    """

    kind: str
    name: str = ""
    process_set: int = 0
    dtypes: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    op: int = 0
    prescale: float = 1.0
    postscale: float = 1.0
    root: int = 0
    device: str = "cpu"


class Key(NamedTuple):
    """The identity of a request on all ranks.

    Requests without a name are numbered per kind and process set.
    """

    process_set: int
    kind: str
    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind}.{self.name or f'noname.{self.number}'}"


class Request:
    """A request of this rank. The same object may be issued again in every step if it has a name.

    `text` is the key as a string, whose hash Python caches. `slot` is its number in the request
    cache, valid while `slots` is the current generation; see `Negotiation.encode`.
    """

    __slots__ = ("key", "number", "slot", "slots", "spec", "text")

    def __init__(self, spec: Spec, number: int = 0) -> None:
        self.spec, self.number = spec, number
        self.key = Key(spec.process_set, spec.kind, spec.name, number)
        self.text = f"{spec.process_set} {spec.kind} {number} {spec.name}"
        self.slot = 0
        self.slots: object = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Request) and (self.spec, self.number) == (other.spec, other.number)

    def __repr__(self) -> str:
        return f"Request({self.spec}, {self.number})"


@dataclass(slots=True)
class Response:
    """The next operation of all ranks: move the data of `requests`, or fail each with `error`.

    `value` is the last rank to join, or the number of a process set. `cache` holds what a rank
    reuses when the same response occurs again.
    """

    kind: str
    requests: list[Request]
    error: str = ""
    value: int = 0
    cache: Any = field(default=None, compare=False)


@lru_cache(4096)
def fusion(spec: Spec) -> tuple[tuple[object, ...], int]:
    """Return the key that fused all-reductions have in common, and the bytes of this one."""
    nbytes = sum(math.prod(s) * ITEMSIZE[d] for s, d in zip(spec.shapes, spec.dtypes, strict=True))
    return (spec.process_set, frozenset(spec.dtypes), spec.op, spec.prescale, spec.postscale, spec.device), nbytes

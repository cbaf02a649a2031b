"""The contract of an engine: a `Communicator` moves tensors between ranks and knows nothing of training.

The base class settles once what is the same everywhere (shapes, dtypes, contiguity, devices, byte counts); an
engine supplies the few primitives with a leading underscore, which see nothing but flat, contiguous tensors.
"""

from __future__ import annotations

import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from hvd_train.comm._connect import connect
from hvd_train.comm._mailbox import Mailbox
from hvd_train.errors import UserError

Op = Literal["mean", "sum", "min", "max", "product"]
OPS: tuple[Op, ...] = get_args(Op)

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_HALVES = (torch.float16, torch.bfloat16)
_COMPLEX = (torch.complex64, torch.complex128)
REDUCIBLE = (torch.bool, *_INTEGERS, *_HALVES, torch.float32, torch.float64, *_COMPLEX)

_PLAIN = {torch.bool: torch.uint8, torch.complex64: torch.float32, torch.complex128: torch.float64}
"""Dtypes of the same memory that every engine can reduce elementwise."""

_PIECE = 1 << 30
"""Elements in one call of MPI, whose counts are C ints before version 4."""

_COMBINE: dict[Op, Callable[..., Tensor]] = {
    "mean": torch.add,
    "sum": torch.add,
    "min": torch.minimum,
    "max": torch.maximum,
    "product": torch.mul,
}


class Work(Protocol):
    """An operation under way; its tensors belong to the engine until `wait` returns."""

    def wait(self) -> None: ...


class SharedMemory(Protocol):
    """Memory that the ranks of a node share, for engines that can offer it: `rank` of `size` on this node."""

    rank: int
    size: int

    def allocate(self, nbytes: int) -> list[Tensor]:
        """Zeroed bytes of every rank of the node, `nbytes` of this one's, that all of them read and write; collective."""

    def barrier(self) -> None:
        """Return once every rank of the node is here; all that was written to shared memory before can be read."""


class Done:
    """The `Work` of an operation that finished before it was asked about."""

    def wait(self) -> None:
        pass


class Then:
    """A `Work` followed by a local step, which runs once, inside the first `wait`."""

    def __init__(self, work: Work, finish: Callable[[], object]) -> None:
        self._work, self._finish = work, finish

    def wait(self) -> None:
        self._work.wait()
        finish, self._finish = self._finish, lambda: None
        finish()


class Communicator(ABC):
    """A group of ranks. Every method but `allocate` and `abort` is collective: all ranks call it, in one order.

    A trailing `_` means in place. Results do not depend on memory layout; non-contiguous tensors are copied.
    Reductions take the dtypes of `REDUCIBLE`; the mean of integers, the mean and sum of bools, the minimum,
    maximum and product of complex numbers raise ValueError. All else moves bytes and takes every dtype.

    `bytes_sent` counts the payload that this rank has handed to others, by the cost of the ring algorithms.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int
    shared_memory: SharedMemory | None = None
    """Of the ranks on this node, where there are several and the engine can offer it."""

    interfaces: str = ""
    """What the launcher chose for messages between hosts: interfaces or subnets, separated by commas. Empty: any."""

    host_memory_only: bool = True
    """The engine reads host memory only: tensors of other devices are staged through it."""

    outlives_ranks: ClassVar[bool] = True
    """Ranks that use no collective may go on after one of them has died."""

    _carriers: ClassVar[Mapping[torch.dtype, torch.dtype]] = {}
    """Dtypes that this engine all-reduces in another, wider one."""

    def __init__(self) -> None:
        self.bytes_sent = 0

    def all_reduce_(self, x: Tensor, op: Op = "mean") -> None:
        """Replace `x` by its reduction over ranks; bitwise equal on every rank."""
        self.all_reduce_async_(x, op).wait()

    def all_reduce_async_(self, x: Tensor, op: Op = "mean") -> Work:
        """Like `all_reduce_`; `x` is valid after `wait`. Issued in one order, waited for in any."""
        check_op(x.dtype, op)
        carried = self._carried(x)
        self._count(2 * (self.size - 1) / self.size * _bytes(carried))
        work = self._all_reduce(carried, op)
        return work if _aliases(carried, x) else Then(work, lambda: _copy_back(carried, x))

    def reduce_scatter(self, x: Tensor, op: Op = "mean") -> Tensor:
        """This rank's rows of the reduction of `x`: `shares` of dimension 0 in rank order."""
        check_op(x.dtype, op)
        if x.dim() == 0:
            raise ValueError("reduce_scatter needs a tensor of at least one dimension")
        flat = self._flat(x)
        self._count((self.size - 1) / self.size * _bytes(flat))
        rows, width = shares(x.shape[0], self.size), math.prod(x.shape[1:])
        mine = self._reduce_scatter(flat, [n * width for n in rows], op)
        return mine.view(rows[self.rank], *x.shape[1:]).to(x.device)

    def all_gather(self, x: Tensor) -> list[Tensor]:
        """Every rank's `x`, in rank order; shapes may differ in the first dimension only."""
        flat = self._flat(x)
        self._count((self.size - 1) * _bytes(flat))
        lengths = self._lengths(_length(x))
        chunks = self._all_gather(_as_bytes(flat), [n * _row_bytes(x) for n in lengths])
        return [_rows(c, n, x) for c, n in zip(chunks, lengths, strict=True)]

    def broadcast_(self, x: Tensor, root: int = 0) -> None:
        """Replace `x` by rank `root`'s; shapes and dtypes are equal everywhere."""
        flat = self._flat(x)
        last_of_the_ring = (root - 1) % self.size
        self._count(0 if self.rank == last_of_the_ring else _bytes(flat))
        self._broadcast(_as_bytes(flat), root)
        if not _aliases(flat, x):
            _copy_back(flat, x)

    def all_to_all(self, xs: Sequence[Tensor]) -> list[Tensor]:
        """What each rank addressed to this one; `xs[r]` goes to rank r, and first dimensions may differ."""
        if len(xs) != self.size:
            raise ValueError(f"all_to_all needs one tensor for each of {self.size} ranks, got {len(xs)}")
        flats = [self._flat(x) for x in xs]
        self._count(sum(map(_bytes, flats)) - _bytes(flats[self.rank]))
        lengths = self._swap_lengths([_length(x) for x in xs])
        chunks = self._all_to_all([_as_bytes(f) for f in flats], [n * _row_bytes(xs[0]) for n in lengths])
        return [_rows(c, n, xs[0]) for c, n in zip(chunks, lengths, strict=True)]

    def exchange(self, x: Tensor, dst: int, src: int) -> Tensor:
        """Send `x` to `dst` and return what `src` sent, of the same shape; `dst` permutes the ranks."""
        flat = _as_bytes(self._flat(x))
        self._count(0 if dst == self.rank else _bytes(flat))
        sent = [flat if r == dst else flat[:0] for r in range(self.size)]
        received = self._all_to_all(sent, [flat.numel() if r == src else 0 for r in range(self.size)])
        return _rows(received[src], _length(x), x)

    def mailbox(self) -> Mailbox:
        """Messages between single ranks, beside the collectives; UserError where this engine offers none."""
        if not self.outlives_ranks:
            raise UserError(
                "this engine ends with the first rank that does; ranks that go on without one another need --engine mpi"
            )
        return connect(self)

    def submit(self, task: Callable[[], object]) -> Work:
        """Run `task`, which may use this communicator, after all that was issued before and no later than `wait`.

        Submitted and waited for in one order; an engine may run it beside the caller. Other calls wait until it is done.
        """
        return Then(Done(), task)

    def aside(self) -> AbstractContextManager[None]:
        """What this rank does meanwhile is no part of training: an emulated network takes no time for it."""
        return nullcontext()

    @abstractmethod
    def barrier(self) -> None:
        """Return once every rank has called it."""

    @abstractmethod
    def split(self, color: int, key: int = 0) -> Communicator:
        """The communicator of the ranks that gave the same `color`, ordered by `key`, then by rank."""

    def allocate(self, numel: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """Zeroed flat memory in the place where this engine reduces fastest."""
        return torch.zeros(numel, dtype=dtype, device=device)

    def close(self) -> None:  # noqa: B027
        """Leave the group; the last call."""

    def abort(self, code: int) -> None:
        """End the whole job with exit code `code`; one rank may call it alone, and it does not return.

        The launcher ends the other ranks when it sees this one go. The interpreter's own shutdown would not do: an
        engine may wait there for ranks that wait for this one.
        """
        os._exit(code)

    @abstractmethod
    def _all_reduce(self, flat: Tensor, op: Op) -> Work:
        """`flat` is no bool and not complex, and in none of the dtypes that `_carriers` replaces."""

    def _reduce_scatter(self, flat: Tensor, counts: list[int], op: Op) -> Tensor:
        """`counts[r]` consecutive elements belong to rank r."""
        shards = self._all_to_all(
            [_as_bytes(shard) for shard in flat.split_with_sizes(counts)],
            [counts[self.rank] * flat.element_size()] * self.size,
        )
        plain = _PLAIN.get(flat.dtype, flat.dtype)
        return reduce_in_order([shard.view(plain) for shard in shards], op).view(flat.dtype)

    def _all_gather(self, flat: Tensor, sizes: list[int]) -> list[Tensor]:
        """`flat` and the results are bytes; `sizes[r]` is rank r's length."""
        return self._all_to_all([flat] * self.size, sizes)

    @abstractmethod
    def _broadcast(self, flat: Tensor, root: int) -> None:
        """In bytes, in place."""

    @abstractmethod
    def _all_to_all(self, flats: Sequence[Tensor], sizes: list[int]) -> list[Tensor]:
        """All in bytes; `sizes[r]` is the length of what comes from rank r. The results are new memory."""

    def _lengths(self, length: int) -> list[int]:
        return [int(c.view(torch.int64)) for c in self._all_gather(_int_bytes(length), [8] * self.size)]

    def _swap_lengths(self, lengths: list[int]) -> list[int]:
        sent = [_int_bytes(n) for n in lengths]
        return [int(c.view(torch.int64)) for c in self._all_to_all(sent, [8] * self.size)]

    def _flat(self, x: Tensor) -> Tensor:
        flat = x.detach().contiguous().resolve_conj().resolve_neg().view(-1)
        return flat.cpu() if self.host_memory_only else flat

    def _carried(self, x: Tensor) -> Tensor:
        flat = self._flat(x)
        plain = flat.view(_PLAIN.get(flat.dtype, flat.dtype))
        return plain.to(self._carriers.get(plain.dtype, plain.dtype))

    def _count(self, payload: float) -> None:
        self.bytes_sent += round(payload)


class Place(NamedTuple):
    """Where a rank stands on its node, and among the ranks of the same number on all nodes."""

    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int


def place(nodes: Sequence[Hashable], rank: int) -> Place:
    """The place of `rank`, where `nodes[r]` names the node of rank r."""
    numbers = [nodes[:r].count(node) for r, node in enumerate(nodes)]
    peers = [r for r, number in enumerate(numbers) if number == numbers[rank]]
    return Place(numbers[rank], nodes.count(nodes[rank]), peers.index(rank), len(peers))


def check_op(dtype: torch.dtype, op: str) -> None:
    """ValueError where `op` is unknown or has no meaning for `dtype`."""
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
    """The reduction of `parts`, first to last: reproducible to the bit; halves accumulate in float32."""
    dtype = parts[0].dtype
    total = parts[0].to(torch.float32 if dtype in _HALVES else dtype, copy=True)
    for part in parts[1:]:
        _COMBINE[op](total, part, out=total)
    if op == "mean":
        total /= len(parts)
    return total.to(dtype)


def shares(total: int, parts: int) -> list[int]:
    """`total` dealt into `parts` sizes that differ by one at most, the larger first."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def pieces(flat: Tensor) -> list[Tensor]:
    """`flat` in consecutive views, none of them empty or too long for one call of MPI."""
    return [flat[start : start + _PIECE] for start in range(0, flat.numel(), _PIECE)]


def gather_json(comm: Communicator, value: Any) -> list[Any]:
    """Every rank's `value`, in rank order, on every rank."""
    return [_decode(text) for text in comm.all_gather(_encode(value))]


def broadcast_json(comm: Communicator, value: Any, root: int = 0) -> Any:
    """Rank `root`'s `value`; that of other ranks is ignored."""
    return _decode(broadcast_bytes(comm, _encode(value if comm.rank == root else None), root))


def broadcast_bytes(comm: Communicator, content: Tensor, root: int = 0) -> Tensor:
    """Rank `root`'s `content`, flat and of uint8; that of other ranks, of any length, is ignored."""
    length = torch.tensor(content.numel())
    comm.broadcast_(length, root)
    content = content if comm.rank == root else torch.empty(int(length), dtype=torch.uint8)
    comm.broadcast_(content, root)
    return content


def _encode(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _decode(text: Tensor) -> Any:
    return json.loads(text.numpy().tobytes())


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _length(x: Tensor) -> int:
    return x.shape[0] if x.dim() else 1


def _row_bytes(x: Tensor) -> int:
    return math.prod(x.shape[1:]) * x.element_size()


def _rows(chunk: Tensor, length: int, like: Tensor) -> Tensor:
    """The tensor whose bytes are `chunk`: `like` with its first dimension of another `length`."""
    shape = (length, *like.shape[1:]) if like.dim() else ()
    return chunk.view(like.dtype).view(shape).to(like.device)


def _as_bytes(flat: Tensor) -> Tensor:
    return flat.view(torch.uint8)


def _int_bytes(number: int) -> Tensor:
    return _as_bytes(torch.tensor([number], dtype=torch.int64))


def _aliases(flat: Tensor, x: Tensor) -> bool:
    return flat.data_ptr() == x.data_ptr()


def _copy_back(flat: Tensor, x: Tensor) -> None:
    pairs_joined = flat.view(x.dtype) if x.is_complex() else flat
    with torch.no_grad():
        x.copy_(pairs_joined.view(x.shape))

"""The contract of an engine: a `Communicator` moves tensors between ranks.

The base class handles shapes, dtypes, contiguity, devices and byte counts for every engine. An
engine implements a few primitives with a leading underscore, which see flat, contiguous tensors
only.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from hvd_train.comm.messages import Mailbox
from hvd_train.comm.ops import Op, as_bytes, check_op, reduce_in_order, shares
from hvd_train.comm.traffic import Traffic
from hvd_train.errors import UserError

_PLAIN = {torch.bool: torch.uint8, torch.complex64: torch.float32, torch.complex128: torch.float64}
"""Dtypes with the same memory layout that every engine can reduce elementwise."""


class Work(Protocol):
    """A pending operation. Its tensors belong to the engine until `wait` returns."""

    def wait(self) -> None: ...


class SharedMemory(Protocol):
    """Memory that the ranks of a node share. This rank is number `rank` of `size` on the node."""

    rank: int
    size: int

    def allocate(self, nbytes: int) -> list[Tensor]:
        """Return zeroed bytes of every rank of the node, `nbytes` of this rank; collective.

        All ranks can read and write them.
        """

    def barrier(self) -> None:
        """Return once every rank of the node has called it.

        Earlier writes to shared memory are then visible.
        """


class Done:
    """The `Work` of an operation that is already complete."""

    def wait(self) -> None:
        pass


class Then:
    """A `Work` followed by a local step, which runs once, in the first `wait`."""

    def __init__(self, work: Work, finish: Callable[[], object]) -> None:
        self._work, self._finish = work, finish

    def wait(self) -> None:
        self._work.wait()
        finish, self._finish = self._finish, lambda: None
        finish()


class Communicator(ABC):
    """A group of ranks.

    All methods but `allocate`, `abort` and `aside` are collective: all ranks call them in one
    order. A trailing `_` means in place. Results do not depend on memory layout; non-contiguous
    tensors are copied. Reductions take the dtypes of `ops.REDUCIBLE` and raise ValueError where
    `ops.check_op` does. All other operations take every dtype.

    A communicator reports what it sends to `traffic`, which the groups that are split from it
    share.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int
    shared_memory: SharedMemory | None = None
    """Memory shared with other ranks of this node.

    None if there are none, or the engine has none.
    """

    interfaces: str = ""
    """Interfaces or subnets for messages between hosts, separated by commas. Empty: any."""

    host_memory_only: bool = True
    """True if the engine reads host memory only. Tensors of other devices are then copied."""

    outlives_ranks: ClassVar[bool] = True
    """True if ranks that use no collective can continue after another rank has died.

    An engine without this property has no `mailbox`.
    """

    _carriers: ClassVar[Mapping[torch.dtype, torch.dtype]] = {}
    """Dtypes that this engine all-reduces in another, wider dtype."""

    def __init__(self, traffic: Traffic | None = None) -> None:
        self.traffic = traffic or Traffic()

    @property
    def bytes_sent(self) -> int:
        """The payload bytes that this rank has sent by all communicators of this `traffic`."""
        return self.traffic.sent

    def all_reduce_(self, x: Tensor, op: Op = "mean") -> None:
        """Replace `x` by its reduction over ranks, bitwise equal on every rank."""
        self.all_reduce_async_(x, op).wait()

    def all_reduce_async_(self, x: Tensor, op: Op = "mean") -> Work:
        """Start `all_reduce_`; `x` is valid after `wait`.

        Ranks issue operations in one order and wait in any order.
        """
        check_op(x.dtype, op)
        carried = self._carried(x)
        self.traffic.add(2 * (self.size - 1) / self.size * _bytes(carried))
        work = self._all_reduce(carried, op)
        return work if _aliases(carried, x) else Then(work, lambda: _copy_back(carried, x))

    def reduce_scatter(self, x: Tensor, op: Op = "mean") -> Tensor:
        """Return this rank's rows of the reduction of `x`.

        Dimension 0 is split by `ops.shares`, in rank order.
        """
        check_op(x.dtype, op)
        if x.dim() == 0:
            raise ValueError("reduce_scatter needs a tensor of at least one dimension")
        flat = self._flat(x)
        self.traffic.add((self.size - 1) / self.size * _bytes(flat))
        rows, width = shares(x.shape[0], self.size), math.prod(x.shape[1:])
        mine = self._reduce_scatter(flat, [n * width for n in rows], op)
        return mine.view(rows[self.rank], *x.shape[1:]).to(x.device)

    def all_gather(self, x: Tensor) -> list[Tensor]:
        """Return the `x` of every rank, in rank order.

        Shapes may differ in the first dimension only.
        """
        flat = self._flat(x)
        self.traffic.add((self.size - 1) * _bytes(flat))
        lengths = self._lengths(_length(x))
        gathered = self._all_gather(as_bytes(flat), [n * _row_bytes(x) for n in lengths])
        return [_rows(c, n, x) for c, n in zip(gathered, lengths, strict=True)]

    def broadcast_(self, x: Tensor, root: int = 0) -> None:
        """Replace `x` by the tensor of rank `root`. Shapes and dtypes are equal on all ranks."""
        flat = self._flat(x)
        last_of_the_ring = (root - 1) % self.size
        self.traffic.add(0 if self.rank == last_of_the_ring else _bytes(flat))
        self._broadcast(as_bytes(flat), root)
        if not _aliases(flat, x):
            _copy_back(flat, x)

    def all_to_all(self, xs: Sequence[Tensor]) -> list[Tensor]:
        """Send `xs[r]` to every rank r and return what each rank sent to this one.

        First dimensions may differ.
        """
        if len(xs) != self.size:
            raise ValueError(f"all_to_all needs one tensor for each of {self.size} ranks, got {len(xs)}")
        flats = [self._flat(x) for x in xs]
        self.traffic.add(sum(map(_bytes, flats)) - _bytes(flats[self.rank]))
        lengths = self._swap_lengths([_length(x) for x in xs])
        received = self._all_to_all([as_bytes(f) for f in flats], [n * _row_bytes(xs[0]) for n in lengths])
        return [_rows(c, n, xs[0]) for c, n in zip(received, lengths, strict=True)]

    def exchange(self, x: Tensor, dst: int, src: int) -> Tensor:
        """Send `x` to `dst` and return the tensor of the same shape that `src` sent.

        `dst` permutes the ranks.
        """
        flat = as_bytes(self._flat(x))
        self.traffic.add(0 if dst == self.rank else _bytes(flat))
        sent = [flat if r == dst else flat[:0] for r in range(self.size)]
        received = self._all_to_all(sent, [flat.numel() if r == src else 0 for r in range(self.size)])
        return _rows(received[src], _length(x), x)

    def mailbox(self) -> Mailbox:
        """Open this rank's mailbox for messages to single ranks.

        UserError if the engine offers none.
        """
        raise UserError(
            "this engine ends all ranks when one rank ends; strategies whose ranks continue without one another need "
            "--engine mpi"
        )

    def submit(self, task: Callable[[], object]) -> Work:
        """Run `task` after all earlier operations and at the latest in `wait`.

        The task may use this communicator. All ranks submit and wait in one order. An engine may
        run tasks in the background; other calls wait for them.
        """
        return Then(Done(), task)

    def aside(self) -> AbstractContextManager[None]:
        """Count what this thread sends within the block as control messages.

        An emulated network takes no time for them.
        """
        return self.traffic.aside()

    @abstractmethod
    def barrier(self) -> None:
        """Return once every rank has called it."""

    @abstractmethod
    def split(self, color: int, key: int = 0) -> Communicator:
        """Return the group of the ranks with the same `color`, ordered by `key`, then by rank."""

    def allocate(self, numel: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """Return a zeroed flat tensor in the memory that this engine reduces fastest."""
        return torch.zeros(numel, dtype=dtype, device=device)

    def close(self) -> None:  # noqa: B027
        """Leave the group; the last call."""

    def abort(self, code: int) -> None:
        """End the whole job with exit code `code` and do not return. One rank may call it alone.

        The launcher ends the other ranks when this one exits. The interpreter's own shutdown is
        skipped: an engine may wait in it for ranks that wait for this one.
        """
        os._exit(code)

    @abstractmethod
    def _all_reduce(self, flat: Tensor, op: Op) -> Work:
        """Reduce `flat` in place.

        Its dtype is neither bool nor complex, and none that `_carriers` replaces.
        """

    def _reduce_scatter(self, flat: Tensor, counts: list[int], op: Op) -> Tensor:
        """Return the reduced elements of this rank; `counts[r]` elements belong to rank r."""
        shards = self._all_to_all(
            [as_bytes(shard) for shard in flat.split_with_sizes(counts)],
            [counts[self.rank] * flat.element_size()] * self.size,
        )
        plain = _PLAIN.get(flat.dtype, flat.dtype)
        return reduce_in_order([shard.view(plain) for shard in shards], op).view(flat.dtype)

    def _all_gather(self, flat: Tensor, sizes: list[int]) -> list[Tensor]:
        """Return the bytes of every rank; `flat` has `sizes[rank]` bytes."""
        return self._all_to_all([flat] * self.size, sizes)

    @abstractmethod
    def _broadcast(self, flat: Tensor, root: int) -> None:
        """Replace the bytes `flat` by those of rank `root`."""

    @abstractmethod
    def _all_to_all(self, flats: Sequence[Tensor], sizes: list[int]) -> list[Tensor]:
        """Send the bytes `flats[r]` to each rank r.

        Return `sizes[r]` bytes of each, in new memory.
        """

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


class NodeRanks(NamedTuple):
    """The number of a rank on its node, and among the ranks of the same number on all nodes."""

    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int


def node_ranks(nodes: Sequence[Hashable], rank: int) -> NodeRanks:
    """Return the numbers of `rank`, where `nodes[r]` identifies the node of rank r."""
    numbers = [nodes[:r].count(node) for r, node in enumerate(nodes)]
    peers = [r for r, number in enumerate(numbers) if number == numbers[rank]]
    return NodeRanks(numbers[rank], nodes.count(nodes[rank]), peers.index(rank), len(peers))


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _length(x: Tensor) -> int:
    return x.shape[0] if x.dim() else 1


def _row_bytes(x: Tensor) -> int:
    return math.prod(x.shape[1:]) * x.element_size()


def _rows(chunk: Tensor, length: int, like: Tensor) -> Tensor:
    """Return the tensor with the bytes `chunk`, shaped like `like` but for its first `length`."""
    shape = (length, *like.shape[1:]) if like.dim() else ()
    return chunk.view(like.dtype).view(shape).to(like.device)


def _int_bytes(number: int) -> Tensor:
    return as_bytes(torch.tensor([number], dtype=torch.int64))


def _aliases(flat: Tensor, x: Tensor) -> bool:
    return flat.data_ptr() == x.data_ptr()


def _copy_back(flat: Tensor, x: Tensor) -> None:
    pairs_joined = flat.view(x.dtype) if x.is_complex() else flat
    with torch.no_grad():
        x.copy_(pairs_joined.view(x.shape))

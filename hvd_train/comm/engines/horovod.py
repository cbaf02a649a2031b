"""Horovod 0.28: a background thread that negotiates, fuses and reduces, over MPI, Gloo or NCCL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hvd_train.comm import addresses
from hvd_train.comm.communicator import Communicator, Then, Work, node_ranks
from hvd_train.comm.objects import gather_json
from hvd_train.comm.ops import Op, chunks
from hvd_train.comm.traffic import Traffic
from hvd_train.errors import UserError

try:
    import horovod.torch as hvd
    from horovod.runner.common.util.host_hash import host_hash
except ImportError as error:
    raise UserError(
        f"engine 'horovod' finds no Horovod for this PyTorch ({error}); build it: scripts/install-horovod"
    ) from error

_OPS = {"mean": hvd.Sum, "sum": hvd.Sum, "min": hvd.Min, "max": hvd.Max, "product": hvd.Product}

_NAMES = 960
"""Operations after which names repeat.

Horovod caches the negotiation of 1024 names; 960 is below and has many divisors, so that the
operations of every training step have the same names. At most as many operations may be pending.
"""

_WORLD = "ddl"

_LARGEST = 2**31 - 1
"""Most bytes in one gather: Horovod casts counts to a C int without a check."""

ProcessSets = dict[tuple[int, ...], Any]
"""Process sets by their sorted ranks. Horovod rejects a second one of the same ranks."""


class _Handles:
    """The `Work` of operations that Horovod's thread runs."""

    def __init__(self, handles: list[int]) -> None:
        self._handles = handles

    def wait(self) -> None:
        for handle in self._handles:
            hvd.synchronize(handle)


class HorovodCommunicator(Communicator):
    """The ranks of a Horovod process set, in the order of `members`, which are ranks of the world.

    float16 is summed in float16. If ranks issue operations that do not match, all get a
    HorovodInternalError, or Horovod's warning names the stalled operation and the missing ranks.
    """

    outlives_ranks: ClassVar[bool] = False
    _carriers: ClassVar[Mapping[torch.dtype, torch.dtype]] = {
        torch.uint8: torch.int32,
        torch.int8: torch.int32,
        torch.int16: torch.int32,
        torch.bfloat16: torch.float32,
    }

    def __init__(
        self, members: Sequence[int], process_sets: ProcessSets, name: str, traffic: Traffic | None = None
    ) -> None:
        super().__init__(traffic)
        self._process_sets, self._name, self._issued = process_sets, name, 0
        self._process_set = process_sets[tuple(sorted(members))]
        self._sorted = sorted(range(len(members)), key=members.__getitem__)
        self._members = members
        self.rank, self.size = members.index(hvd.rank()), len(members)
        self.host_memory_only = not hvd.nccl_built()
        self.interfaces = addresses.chosen()
        nodes = gather_json(self, host_hash())
        self.local_rank, self.local_size, self.cross_rank, self.cross_size = node_ranks(nodes, self.rank)

    def barrier(self) -> None:
        hvd.barrier(self._process_set)

    def split(self, color: int, key: int = 0) -> Communicator:
        """Split the world.

        ValueError for other groups: all ranks of the world must take part in making a process set.
        """
        if self.size < hvd.size():
            raise ValueError("Horovod can split only the communicator of all ranks")
        name = self._next_name()
        groups: dict[int, list[int]] = {}
        for its_color, _, rank in sorted(gather_json(self, [color, key, self.rank])):
            groups.setdefault(its_color, []).append(self._members[rank])
        for members in groups.values():
            self._add_process_set(members)
        return HorovodCommunicator(groups[color], self._process_sets, name, self.traffic)

    def close(self) -> None:
        """Shut Horovod down if this is the world. Process sets exist until then."""
        if self._name == _WORLD:
            self.barrier()
            hvd.shutdown()

    def _all_reduce(self, flat: Tensor, op: Op) -> Work:
        work = _Handles([self._start(hvd.allreduce_async_, chunk, op=_OPS[op]) for chunk in chunks(flat)])
        return Then(work, lambda: flat.div_(self.size)) if op == "mean" else work

    def _broadcast(self, flat: Tensor, root: int) -> None:
        source = self._members[root]
        _Handles([self._start(hvd.broadcast_async_, chunk, source) for chunk in chunks(flat)]).wait()

    def _all_gather(self, flat: Tensor, sizes: list[int]) -> list[Tensor]:
        _check_size(sum(sizes))
        received = hvd.synchronize(self._start(hvd.allgather_async, flat))
        return self._in_rank_order(received, sizes)

    def _all_to_all(self, flats: Sequence[Tensor], sizes: list[int]) -> list[Tensor]:
        sent = torch.cat([flats[r] for r in self._sorted])
        _check_size(max(sent.numel(), sum(sizes)))
        splits = torch.tensor([flats[r].numel() for r in self._sorted], dtype=torch.int32)
        received, _ = hvd.synchronize(self._start(hvd.alltoall_async, sent, splits))
        return self._in_rank_order(received, sizes)

    def _in_rank_order(self, received: Tensor, sizes: list[int]) -> list[Tensor]:
        parts = received.split_with_sizes([sizes[r] for r in self._sorted])
        return [parts[self._sorted.index(r)] for r in range(self.size)]

    def _add_process_set(self, members: Sequence[int]) -> None:
        ranks = tuple(sorted(members))
        if ranks not in self._process_sets:
            self._process_sets[ranks] = hvd.add_process_set(ranks)

    def _start(self, operation: Callable[..., int], *args: Any, **options: Any) -> int:
        return operation(*args, name=self._next_name(), process_set=self._process_set, **options)

    def _next_name(self) -> str:
        """Return a name by order of issue.

        Horovod matches the operations of ranks by kind and name.
        """
        self._issued += 1
        return f"{self._name}.{self._issued % _NAMES}"


def create() -> Communicator:
    hvd.init(process_sets="dynamic")
    world = range(hvd.size())
    return HorovodCommunicator(world, {tuple(world): hvd.global_process_set}, _WORLD)


def _check_size(nbytes: int) -> None:
    if nbytes > _LARGEST:
        raise ValueError(f"Horovod cannot gather {nbytes} bytes at once: at most {_LARGEST}")

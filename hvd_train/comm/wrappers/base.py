"""The base of communicators that wrap another one and change some of its operations."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator, Work
from hvd_train.comm.messages import Mailbox
from hvd_train.comm.ops import Op


class Wrapper(Communicator):
    """The group of `inner`, whose `traffic` it shares.

    Subclasses define `split` and may offer shared memory.
    """

    def __init__(self, inner: Communicator) -> None:
        self._inner = inner
        super().__init__(inner.traffic)
        self.rank, self.size = inner.rank, inner.size
        self.local_rank, self.local_size = inner.local_rank, inner.local_size
        self.cross_rank, self.cross_size = inner.cross_rank, inner.cross_size
        self.interfaces = inner.interfaces
        self.host_memory_only, self._carriers = inner.host_memory_only, inner._carriers  # type: ignore[misc]
        self.outlives_ranks = inner.outlives_ranks  # type: ignore[misc]

    def barrier(self) -> None:
        self._inner.barrier()

    def mailbox(self) -> Mailbox:
        return self._inner.mailbox()

    def aside(self) -> AbstractContextManager[None]:
        return self._inner.aside()

    def allocate(self, numel: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        return self._inner.allocate(numel, dtype, device)

    def close(self) -> None:
        self._inner.close()

    def abort(self, code: int) -> None:
        self._inner.abort(code)

    def _all_reduce(self, flat: Tensor, op: Op) -> Work:
        return self._inner._all_reduce(flat, op)

    def _reduce_scatter(self, flat: Tensor, counts: list[int], op: Op) -> Tensor:
        return self._inner._reduce_scatter(flat, counts, op)

    def _all_gather(self, flat: Tensor, sizes: list[int]) -> list[Tensor]:
        return self._inner._all_gather(flat, sizes)

    def _broadcast(self, flat: Tensor, root: int) -> None:
        self._inner._broadcast(flat, root)

    def _all_to_all(self, flats: Sequence[Tensor], sizes: list[int]) -> list[Tensor]:
        return self._inner._all_to_all(flats, sizes)

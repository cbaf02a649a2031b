"""A world of one rank: every collective is the identity."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hvd_train.comm.communicator import Communicator, Done, Work
from hvd_train.comm.connect import connect
from hvd_train.comm.messages import Mailbox
from hvd_train.comm.ops import Op


class SingleCommunicator(Communicator):
    """The engine of a run without launcher, so that no code needs to ask if it is distributed."""

    rank = local_rank = cross_rank = 0
    size = local_size = cross_size = 1
    host_memory_only = False

    def barrier(self) -> None:
        pass

    def split(self, color: int, key: int = 0) -> Communicator:
        return SingleCommunicator(self.traffic)

    def mailbox(self) -> Mailbox:
        return connect(self)

    def _all_reduce(self, flat: Tensor, op: Op) -> Work:
        return Done()

    def _broadcast(self, flat: Tensor, root: int) -> None:
        pass

    def _all_to_all(self, flats: Sequence[Tensor], sizes: list[int]) -> list[Tensor]:
        return [flats[0].clone()]


def create() -> Communicator:
    return SingleCommunicator()

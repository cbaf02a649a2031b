"""The all-reduce of a ddl communicator, through its public contract."""

from __future__ import annotations

from torch import Tensor

from hvd_train.bench.allreduce.base import AllReduceVariant
from hvd_train.bench.base import Backend
from hvd_train.comm.communicator import Communicator


class CommunicatorReducer(AllReduceVariant):
    """Sum `x` over the ranks of `comm`."""

    comm: Communicator

    def __init__(self, comm: Communicator, x: Tensor, backend: Backend | None = None) -> None:
        self.x, self.comm = x, comm
        self.backend = backend or Backend()

    def run(self) -> None:
        self.comm.all_reduce_(self.x, "sum")

    def close(self) -> None:
        self.backend.close(self.comm)

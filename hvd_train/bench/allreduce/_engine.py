"""An engine of ddl, through its public contract."""

from __future__ import annotations

from torch import Tensor

from hvd_train.bench.allreduce.base import Reducer
from hvd_train.comm.base import Communicator


class Engine(Reducer):
    comm: Communicator

    def __init__(self, comm: Communicator, x: Tensor) -> None:
        self.x, self.comm = x, comm

    def run(self) -> None:
        self.comm.all_reduce_(self.x, "sum")

    def close(self) -> None:
        self.comm.close()

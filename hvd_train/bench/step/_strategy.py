"""A step of ddl as the trainer makes it: the hooks of the strategy `allreduce`, with its defaults."""

from __future__ import annotations

from functools import partial

from hvd_train import plugins
from hvd_train.bench.step.base import Stepper, Task
from hvd_train.bench.world import World
from hvd_train.comm.base import Communicator
from hvd_train.optimizer import without_compiler
from hvd_train.sync.base import Context, SyncStrategy


class Strategy(Stepper):
    comm: Communicator

    def __init__(self, world: World, task: Task, comm: Communicator, compression: str = "none") -> None:
        super().__init__(task, task.batch(world.rank))
        self.comm = comm
        context = Context(comm, plugins.create("hvd_train.compress", compression))
        self._strategy: SyncStrategy = plugins.create("hvd_train.sync", "allreduce", context)
        self.optimizer = self._strategy.optimizer(
            self.model, lambda parameters: without_compiler(partial(task.optimizer, parameters))
        ).torch
        self._strategy.start(self.model)
        self._steps = 0

    def run(self) -> None:
        self.model.zero_grad(set_to_none=True)
        loss = self.loss() / self._strategy.divisor(1, self.comm.size)
        self._strategy.on_backward(self._steps)
        loss.backward()  # type: ignore[no-untyped-call]
        self._strategy.on_gradients(self._steps)
        self.optimizer.step()
        self._strategy.on_parameters(self._steps)
        self._steps += 1

    def close(self) -> None:
        self.comm.close()

"""A step of ddl as the trainer runs it, with the strategy `allreduce` and its defaults."""

from __future__ import annotations

from hvd_train.bench.base import Backend
from hvd_train.bench.step.base import Stepper, Task
from hvd_train.bench.world import World
from hvd_train.comm.communicator import Communicator
from hvd_train.config import plugins
from hvd_train.gradients.optimizer import Build
from hvd_train.sync.base import Context, SyncStrategy


class StrategyStepper(Stepper):
    """A step that averages gradients over `comm` with a strategy of ddl."""

    comm: Communicator

    def __init__(
        self,
        world: World,
        task: Task,
        comm: Communicator,
        compression: str = "none",
        backend: Backend | None = None,
    ) -> None:
        super().__init__(task, task.batch(world.rank))
        self.comm, self.backend = comm, backend or Backend()
        context = Context(comm, plugins.create("hvd_train.gradients.compressors", compression))
        self._strategy: SyncStrategy = plugins.create("hvd_train.sync.strategies", "allreduce", context)
        build = Build(task.optimizer_name, task.optimizer_options)
        self.optimizer = self._strategy.optimizer(self.model, build).torch
        self._strategy.start(self.model)
        self._steps = 0

    def run(self) -> None:
        self.model.zero_grad(set_to_none=True)
        loss = self.loss() / self._strategy.gradient_scale.divisor(1, self.comm.size)
        self._strategy.on_backward(self._steps)
        loss.backward()  # type: ignore[no-untyped-call]
        self._strategy.on_gradients(self._steps)
        self.optimizer.step()
        self._strategy.on_parameters(self._steps)
        self._steps += 1

    def close(self) -> None:
        self.backend.close(self.comm)

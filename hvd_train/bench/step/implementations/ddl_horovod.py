"""ddl's Horovod engine."""

from __future__ import annotations

from hvd_train.bench.horovod import HorovodBackend
from hvd_train.bench.step.base import Stepper, Task
from hvd_train.bench.step.strategy import StrategyStepper
from hvd_train.bench.world import World
from hvd_train.comm.engines import horovod


def create(world: World, task: Task) -> Stepper:
    return StrategyStepper(world, task, horovod.create(), backend=HorovodBackend("dynamic"))

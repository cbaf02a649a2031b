"""Our Horovod engine."""

from __future__ import annotations

from hvd_train.bench.horovod import OnHorovod
from hvd_train.bench.step._strategy import Strategy
from hvd_train.bench.step.base import Stepper, Task
from hvd_train.bench.world import World
from hvd_train.comm import horovod


class HorovodEngine(OnHorovod, Strategy):
    process_sets = "dynamic"


def create(world: World, task: Task) -> Stepper:
    return HorovodEngine(world, task, horovod.create())

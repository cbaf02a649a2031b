"""One rank of `benchmarks/across_hosts.py`.

It runs blocks of steps of each variant, and measures their time and the bytes that this host sends.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

from benchmarks.across_hosts import Request
from hvd_train.bench import machine
from hvd_train.bench.measure import WrongResult, order
from hvd_train.bench.step.base import IMPLEMENTATIONS, StepCase, Stepper, Task
from hvd_train.bench.step.implementations.ddp import Ddp
from hvd_train.bench.step.strategy import StrategyStepper
from hvd_train.bench.workloads import WORKLOADS
from hvd_train.bench.world import World
from hvd_train.comm.engines import mpi
from hvd_train.config import plugins
from tests.cluster.hosts import Traffic


class HalfDdp(Ddp):
    """DDP with torch's fp16 hook. Its bf16 hook needs NCCL."""

    def __init__(self, world: World, task: Task) -> None:
        super().__init__(world, task)
        ddp: Any = self.forward
        ddp.register_comm_hook(world.process_group, fp16_compress_hook)


def create(name: str, world: World, task: Task) -> Stepper:
    _, _, compression = name.partition("+")
    if name == "ddp+fp16":
        return HalfDdp(world, task)
    if compression:
        return StrategyStepper(world, task, mpi.create(), compression)
    made: Stepper = plugins.create(IMPLEMENTATIONS, name, world, task)
    return made


def measure(world: World, request: Request, task: Task) -> dict[str, list[dict[str, Any]]]:
    """Return the blocks of each variant: seconds per step of the slowest rank, and bytes per host."""
    steppers: dict[str, Stepper] = {}
    for name in request.variants:
        steppers[name] = create(name, world, task)
        check(name, steppers[name], world, task)
        steppers[name].backend.pause()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in steppers}
    for number in range(request.rounds):
        for name in order(list(steppers), number):
            found[name].append(block(world, steppers[name], request.steps))
    for stepper in steppers.values():
        stepper.close()
    return found


def check(name: str, stepper: Stepper, world: World, task: Task) -> None:
    """Raise WrongResult if a variant without compression differs from one process."""
    problem = StepCase(name, task, world).check(stepper, world)
    if problem and "+" not in name:
        raise WrongResult(f"{name} on rank {world.rank}: {problem}")


def block(world: World, stepper: Stepper, steps: int) -> dict[str, Any]:
    stepper.backend.resume()
    stepper.run()
    world.barrier()
    before, begin = Traffic.of(), time.perf_counter()
    for _ in range(steps):
        stepper.run()
    seconds = max(world.gather((time.perf_counter() - begin) / steps))
    passed = Traffic.of() - before
    stepper.backend.pause()
    return {"seconds": seconds, "sent": dict(world.gather((socket.gethostname(), passed.sent / steps)))}


def main() -> None:
    request, world = Request(**json.loads(sys.argv[1])), World()
    task = Task(WORKLOADS[request.workload], request.optimizer)
    load = os.getloadavg()[0]
    found = {
        "world_size": world.size,
        "hosts": sorted(set(world.gather(socket.gethostname()))),
        "payload": sum(p.numel() * p.element_size() for p in task.model().parameters()),
        "variants": measure(world, request, task),
        "machine": {**machine.facts(), "load": load},
    }
    if world.rank == 0:
        Path(request.output).write_text(json.dumps(found), encoding="utf-8")
    world.close()


if __name__ == "__main__":
    main()

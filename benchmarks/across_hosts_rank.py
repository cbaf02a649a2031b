"""One rank of `benchmarks/across_hosts.py`: steps of every variant in turn, their time, and what passes this host's interface."""

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
from hvd_train import plugins
from hvd_train.bench.machine import machine
from hvd_train.bench.measure import Wrong, order
from hvd_train.bench.step._strategy import Strategy
from hvd_train.bench.step.base import Step, Stepper, Task
from hvd_train.bench.step.ddp import Ddp
from hvd_train.bench.workloads import WORKLOADS
from hvd_train.bench.world import World
from hvd_train.comm import mpi
from tests.cluster.hosts import Traffic


class HalfDdp(Ddp):
    """DDP with torch's own fp16 hook; that for bf16 wants NCCL."""

    def __init__(self, world: World, task: Task) -> None:
        super().__init__(world, task)
        ddp: Any = self.forward
        ddp.register_comm_hook(world.process_group, fp16_compress_hook)


def create(name: str, world: World, task: Task) -> Stepper:
    _, _, compression = name.partition("+")
    if name == "ddp+fp16":
        return HalfDdp(world, task)
    if compression:
        return Strategy(world, task, mpi.create(), compression)
    made: Stepper = plugins.create("hvd_train.bench.step", name, world, task)
    return made


def measure(world: World, request: Request, task: Task) -> dict[str, list[dict[str, Any]]]:
    """Of every variant and round the seconds of a step on the slowest rank, and the bytes that each host sent in it."""
    steppers: dict[str, Stepper] = {}
    for name in request.variants:
        steppers[name] = create(name, world, task)
        check(name, steppers[name], world, task)
        steppers[name].pause()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in steppers}
    for number in range(request.rounds):
        for name in order(list(steppers), number):
            found[name].append(block(world, steppers[name], request.steps))
    for stepper in steppers.values():
        stepper.close()
    return found


def check(name: str, stepper: Stepper, world: World, task: Task) -> None:
    """What does not round must give the parameters of one process."""
    problem = Step(name, task, world).check(stepper, world)
    if problem and "+" not in name:
        raise Wrong(f"{name} on rank {world.rank}: {problem}")


def block(world: World, stepper: Stepper, steps: int) -> dict[str, Any]:
    stepper.resume()
    stepper.run()
    world.barrier()
    before, begin = Traffic.of(), time.perf_counter()
    for _ in range(steps):
        stepper.run()
    seconds = max(world.gather((time.perf_counter() - begin) / steps))
    passed = Traffic.of() - before
    stepper.pause()
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
        "machine": {**machine(), "load": load},
    }
    if world.rank == 0:
        Path(request.output).write_text(json.dumps(found), encoding="utf-8")
    world.close()


if __name__ == "__main__":
    main()

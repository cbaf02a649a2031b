"""Memory of a node during training.

Run `ddl run --np 4 benchmarks/memory_per_node.py sharded`, or `whole`. The result is the growth of
the proportional set size since before the model was created. Processes that map a page divide its
size among them.
"""

from __future__ import annotations

import sys

import psutil
import torch
from torch import nn

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import gather_json
from hvd_train.config import plugins
from hvd_train.gradients.optimizer import Build
from hvd_train.sync.base import Context

WIDTH, DEPTH = 2048, 4


def resident() -> int:
    size: int = psutil.Process().memory_full_info().pss
    return size


BUILD = Build("AdamW", {"lr": 1e-3, "fused": True})


def grown(comm: Communicator, shard: bool) -> int:
    """Return the growth of this rank in bytes after three steps.

    The imports of the first optimizer are excluded.
    """
    BUILD([nn.Parameter(torch.zeros(1))])
    before = resident()
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)))
    context = Context(comm, plugins.create("hvd_train.gradients.compressors", "none"))
    strategy = plugins.create("hvd_train.sync.strategies", "allreduce", context, shard_optimizer=shard)
    optimizer = strategy.optimizer(model, BUILD)
    strategy.start(model)
    for step in range(3):
        model.zero_grad(set_to_none=True)
        strategy.on_backward(step)
        model(torch.randn(8, WIDTH)).square().mean().backward()
        strategy.on_gradients(step)
        optimizer.torch.step()
        strategy.on_parameters(step)
    comm.barrier()
    return resident() - before


def main() -> None:
    comm = plugins.create("hvd_train.comm.engines", "mpi")
    payload = DEPTH * (WIDTH * WIDTH + WIDTH) * 4
    kind = sys.argv[1]
    total = sum(gather_json(comm, grown(comm, kind == "sharded")))
    if comm.rank == 0:
        print(f"{kind}: {total / 1e6:.0f} MB, {total / payload:.2f} times the parameters", flush=True)


main()

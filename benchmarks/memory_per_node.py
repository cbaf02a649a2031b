"""Memory of a node in training: `ddl run --np 4 benchmarks/memory_per_node.py sharded`, or `whole`.

Proportional set size (shared pages count once, split among those who map them), over that before the model was made.
"""

from __future__ import annotations

import sys

import psutil
import torch
from torch import nn

from hvd_train import plugins
from hvd_train.comm.base import Communicator, gather_json
from hvd_train.sync.base import Context

WIDTH, DEPTH = 2048, 4


def resident() -> int:
    size: int = psutil.Process().memory_full_info().pss
    return size


def build(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, fused=True)


def grown(comm: Communicator, shard: bool) -> int:
    """Bytes that this rank holds after some steps; what torch imports with its first optimizer is not among them."""
    build([nn.Parameter(torch.zeros(1))])
    before = resident()
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)))
    context = Context(comm, plugins.create("hvd_train.compress", "none"))
    strategy = plugins.create("hvd_train.sync", "allreduce", context, shard_optimizer=shard)
    optimizer = strategy.optimizer(model, build)
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
    comm = plugins.create("hvd_train.comm", "mpi")
    payload = DEPTH * (WIDTH * WIDTH + WIDTH) * 4
    kind = sys.argv[1]
    total = sum(gather_json(comm, grown(comm, kind == "sharded")))
    if comm.rank == 0:
        print(f"{kind}: {total / 1e6:.0f} MB, {total / payload:.2f} times the parameters", flush=True)


main()

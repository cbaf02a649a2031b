"""One rank of benchmarks/data_loading.py: loads epochs with ddl's loader and with torch's, in turn.

Rank 0 prints the measured seconds as JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from data_loading_samples import SECONDS, Computing, Fetched, Waiting
from torch.utils.data import DataLoader, default_collate

from hvd_train.comm.objects import gather_json
from hvd_train.config import plugins
from hvd_train.data.loading.loader import Loader
from hvd_train.data.samples import SampleSplit
from hvd_train.data.torch_datasets import as_dataset

BATCH = 32
PREFETCH = 2


def main() -> None:
    kind, workers, steps, rounds = sys.argv[1], *map(int, sys.argv[2:5])
    comm = plugins.create("hvd_train.comm.engines", "mpi")
    items = _items(kind, steps * BATCH)
    plan = torch.randperm(len(items), generator=torch.Generator().manual_seed(comm.rank)).split(BATCH)[:steps]
    loader = Loader(workers, "processes", PREFETCH)
    split = SampleSplit(items, default_collate)
    theirs = _of_torch(items, plan, workers)
    epochs: dict[str, Callable[[], Iterable[Any]]] = {"ddl": lambda: loader.load(split, plan), "torch": lambda: theirs}
    compute = _computation(0.0 if kind == "jpeg" else 1.25 * SECONDS * BATCH / workers)
    for epoch in epochs.values():  # the workers start
        _measured(epoch(), compute)
    measured = []
    for number in range(rounds):
        order = list(epochs) if number % 2 else list(reversed(epochs))
        found = {}
        for name in order:
            comm.barrier()
            found[name] = _measured(epochs[name](), compute)
        measured.append(found)
    loader.close()
    of_ranks = gather_json(comm, measured)
    if comm.rank == 0:
        print(json.dumps({"ranks": of_ranks, "samples": steps * BATCH}), flush=True)


def _items(kind: str, length: int) -> Any:
    if kind == "jpeg":
        return plugins.create("hvd_train.data.sources", "images", path=sys.argv[5], size=224).train
    made = {"waiting": Waiting, "computing": Computing}[kind](length)
    return as_dataset(made, kind).train


def _of_torch(items: Any, plan: Iterable[torch.Tensor], workers: int) -> Iterable[Any]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.utils.data"])
    sampler = [positions.tolist() for positions in plan]
    return DataLoader(
        Fetched(items), batch_sampler=sampler, num_workers=workers, prefetch_factor=PREFETCH,
        persistent_workers=True, multiprocessing_context=context,
    )  # fmt: skip


def _computation(seconds: float) -> Callable[[], None]:
    """Return a function that computes for `seconds` on an idle core."""
    a = torch.randn(256, 256)
    begin = time.perf_counter()
    for _ in range(50):
        a @ a
    number = round(seconds * 50 / (time.perf_counter() - begin))

    def compute() -> None:
        for _ in range(number):
            a @ a

    return compute


def _measured(batches: Iterable[Any], compute: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds of an epoch, and the part of them that passed in waiting for batches."""
    begin, waited = time.perf_counter(), 0.0
    found = iter(batches)
    while True:
        asked = time.perf_counter()
        batch = next(found, None)
        waited += time.perf_counter() - asked
        if batch is None:
            return time.perf_counter() - begin, waited
        compute()


if __name__ == "__main__":
    main()

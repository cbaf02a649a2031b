"""Bodies of tests of rollouts that are cut, for every engine with mailboxes: functions of a communicator."""

from __future__ import annotations

from typing import Any

import torch

from hvd_train.comm.communicator import Communicator
from hvd_train.monitor.base import Record, Sink
from tests.bodies import agents, training

STEPS = 16


class Log(Sink):
    def __init__(self) -> None:
        self.trained: list[Record] = []

    def train(self, record: Record) -> None:
        self.trained.append(record)


def configuration(size: int, **sections: Any) -> Any:
    """Return a run in which the last worker is slow, and is cut once another one is done."""
    slow = [{}] * (size - 1) + [{"seconds": 0.004}]
    data = {
        "env": "tests.bodies.environments:Slow",
        "envs": 2,
        "steps": STEPS,
        "batch_size": 8,
        "variants": slow,
        "variants_by": "worker",
        "cut_at": 1 / size,
        "max_steps": 20,
        **sections.pop("data", {}),
    }
    return agents.configuration(1, data=data, **sections)


def a_slow_worker_is_cut(comm: Communicator) -> None:
    """Its epochs are shorter, all take the same steps, and the run goes on until its steps are collected."""
    wanted = 3 * STEPS * 2 * comm.size
    log = Log()
    train = {"epochs": None, "env_steps": wanted, "log_every": 1}
    job = training.trainer(comm, configuration(comm.size, train=train), sinks=[log])
    job.run()
    assert job.collector is not None
    own = torch.tensor([float(len(job.collector.collect(job.collector._epoch, 0)))])
    of_ranks = torch.cat(comm.all_gather(own)).tolist()
    alone = comm.size == 1
    assert max(of_ranks) == 2 * STEPS
    assert alone or STEPS / 2 <= of_ranks[-1] < 2 * STEPS
    assert wanted <= job.progress.env_steps < wanted + 2 * STEPS * comm.size
    assert job.progress.epoch == 3 if alone else job.progress.epoch > 3
    assert job.progress.step == job.progress.epoch * (2 * STEPS * 2 // 8)
    shares = [record["cut_share"] for record in log.trained if "cut_share" in record]
    assert not shares if alone else 0 < max(shares) <= 0.75 * (comm.size - 1) / comm.size
    flat = torch.cat([p.flatten() for p in training.parameters(job).values()])
    assert all(torch.equal(flat, other) for other in comm.all_gather(flat))


BODIES = [a_slow_worker_is_cut]

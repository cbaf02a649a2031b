"""Strategies whose ranks do not wait for one another: plain functions of a communicator."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.comm.messages import Mailbox
from hvd_train.errors import Stopped, UserError
from hvd_train.monitor.base import Sink
from hvd_train.state import checkpoint_folder
from hvd_train.training import checkpoint
from hvd_train.training.loop import Trainer
from tests.bodies import training as body

ENDLESS = 1_000_000
PLAIN = {"name": "SGD", "lr": 1.0, "momentum": None, "weight_decay": None}
SERVED: list[dict[str, Any]] = [
    {"strategy": "async_ps"},
    {"strategy": "async_ps", "servers": 2},
    {"strategy": "async_ps", "placement": "dedicated", "window_ms": 1.0},
    {"strategy": "ssp", "staleness": 0},
    {"strategy": "ssp", "staleness": 2, "servers": 2, "placement": "dedicated"},
]
EVERY: list[dict[str, Any]] = [
    {"strategy": "async_ps"},
    {"strategy": "ssp", "staleness": 1},
    {"strategy": "async_gossip"},
    {"strategy": "parameter_server", "backup_workers": 1},
]


class Each(Sink):
    """Calls `after(step)` after every step."""

    def __init__(self, after: Callable[[int], None]) -> None:
        self.step = after  # type: ignore[method-assign]


def configuration(steps: int, sync: dict[str, Any], **sections: Any) -> Any:
    train = {"steps": steps, "epochs": None, **sections.pop("train", {})}
    return body.configuration(train=train, sync={"fusion_mb": None, **sync}, **sections)


def fits(comm: Communicator, sync: dict[str, Any]) -> bool:
    """Return True if there are enough ranks for these servers and backup workers."""
    dedicated = sync.get("placement") == "dedicated"
    return comm.size >= max(sync.get("servers", 1) + dedicated, 1 + sync.get("backup_workers", 0))


def vector(job: Trainer) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in job.model.parameters() if p.requires_grad])


def fixed_gradients(job: Trainer, value: float) -> None:
    """Let all gradients of `job` be `value`."""

    def set_them(step: int) -> None:
        for p in job.model.parameters():
            p.grad = torch.full_like(p, value) if p.requires_grad else None

    job.strategy.on_gradients = set_them  # type: ignore[method-assign]


def no_update_is_lost(comm: Communicator) -> None:
    """Workers push whole numbers, different ones for each worker: their sum is applied exactly."""
    for sync in SERVED:
        if not fits(comm, sync):
            continue
        job = body.trainer(comm, configuration(4 + comm.rank, sync, optimizer=PLAIN))
        fixed_gradients(job, float(10**comm.rank))
        before = vector(job)
        job.run()
        workers = comm.size - sync.get("servers", 1) * (sync.get("placement") == "dedicated")
        pushed = sum((4 + rank) * 10**rank for rank in range(workers))
        expected = before
        for rank in range(workers):
            for _ in range(4 + rank):
                expected = expected - 10**rank
        if comm.rank < workers:
            torch.testing.assert_close(vector(job), before - pushed, rtol=0, atol=1e-9)
        if comm.rank == 0:
            report = job.strategy.view.summary()
            assert report["updates"] == sum(4 + rank for rank in range(workers)), sync
            assert sum(report["staleness"]["histogram"].values()) == report["updates"] * sync.get("servers", 1)


def one_worker_equals_one_process(comm: Communicator) -> None:
    """All other ranks serve a part of the parameters each, of a model with unusual parameters."""
    sync: dict[str, Any] = {"strategy": "async_ps"}
    if comm.size > 1:
        sync |= {"servers": comm.size - 1, "placement": "dedicated"}
    kinds: dict[str, dict[str, Any]] = {
        "SGD": {},
        "AdamW": {"name": "AdamW", "lr": 0.01, "momentum": None},
        "Adafactor": {"name": "Adafactor", "lr": 0.01, "momentum": None},
    }
    for name, optimizer in kinds.items():
        sections = {"optimizer": optimizer, "schedule": {"name": "cosine"}, "train": {"clip_norm": 0.5}}
        with body.alone(comm):
            alone = body.trained(SingleCommunicator(), configuration(9, {"strategy": "allreduce"}, **sections))
        served = body.trainer(comm, configuration(9, sync, **sections))
        served.run()
        if comm.rank == 0:
            try:
                body.assert_close(body.parameters(served), alone, 1e-10)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from None


def ssp_without_staleness_is_synchronous(comm: Communicator) -> None:
    """The sum of the workers' mean gradients is applied, as by allreduce with N times the rate."""
    found = {}
    for strategy, rate in (("ssp", 0.05), ("allreduce", 0.05 * comm.size)):
        sync = {"strategy": strategy, **({"staleness": 0} if strategy == "ssp" else {})}
        plain = {**PLAIN, "lr": rate}
        found[strategy] = body.trained(comm, configuration(6, sync, optimizer=plain, data={"batch_size": 8}))
    body.assert_close(found["ssp"], found["allreduce"], 1e-9)


def gaps_stay_bounded(comm: Communicator) -> None:
    """The last worker is slow: the others are ahead of it by the allowed staleness, and no more."""
    for staleness in (0, 2):
        job = body.trainer(comm, configuration(6, {"strategy": "ssp", "staleness": staleness}))
        if comm.rank == comm.size - 1:
            job.sinks = [Each(lambda step: time.sleep(0.03))]
        job.run()
        if comm.rank == 0:
            assert job.strategy.view.summary()["largest_gap"] == (staleness if comm.size > 1 else 0)


def a_slow_worker_delays_no_other(comm: Communicator) -> None:
    """The last worker ends its first step after all others have ended their last step."""
    last = comm.size - 1
    for sync in EVERY:
        if comm.size < 2 or sync["strategy"] == "ssp":
            continue
        signs = comm.mailbox()
        job = body.trainer(comm, configuration(5, sync))
        if comm.rank == last:
            job.strategy.on_gradients = _waits_for_others(signs, last)  # type: ignore[method-assign]
        else:
            job.sinks = [Each(partial(_announces_the_end, signs, last))]
        job.run()
        if sync["strategy"] != "parameter_server":
            assert job.progress.step == 5, sync
        elif comm.rank == last:
            # Some more steps are possible: its push may reach servers before the others' end.
            assert job.progress.step < 5, "the run was over when the others had ended"
        signs.close()


def _waits_for_others(signs: Mailbox, others: int) -> Callable[[int], None]:
    def on_gradients(step: int) -> None:
        if step == 0:
            assert all(signs.receive(20) for _ in range(others)), "others waited for the slow one"

    return on_gradients


def _announces_the_end(signs: Mailbox, last: int, step: int) -> None:
    if step == 5:
        signs.send(last, "through")


def a_rank_that_finishes_early_waits_for_the_others(comm: Communicator) -> None:
    """Ranks take different numbers of steps and end with the same parameters."""
    for sync in EVERY[:3]:
        job = body.trainer(comm, configuration(2 + 3 * comm.rank, sync))
        assert job.run() == "length"
        assert job.progress.step == 2 + 3 * comm.rank
        assert all(torch.equal(vector(job), other) for other in comm.all_gather(vector(job))), sync
        if comm.rank == 0:
            assert len([n for n in job.of_ranks if n and (n["bytes"] or comm.size == 1)]) == comm.size


def averages_keep_the_mean(comm: Communicator) -> None:
    """Without gradients, different replicas end exactly at their mean."""
    job = body.trainer(comm, configuration(10, {"strategy": "async_gossip"}, optimizer={**PLAIN, "lr": 0.0}))
    start = job.strategy.start

    def apart(model: Any) -> None:
        # Others may average with the replica as it is at the start: whole numbers too.
        for p in model.parameters():
            p.data.zero_()
        start(model)
        job.strategy.flat.tensors[0].fill_(float(2**comm.rank))  # type: ignore[attr-defined]

    job.strategy.start = apart  # type: ignore[method-assign]
    job.sinks = [Each(lambda step: time.sleep(0.002))]
    job.run()
    assert torch.equal(vector(job), torch.full_like(vector(job), (2**comm.size - 1) / comm.size))
    assert comm.size == 1 or job.strategy.view.summary()["averages"] > 0


def rank_0_ends_the_run_for_all(comm: Communicator) -> None:
    for sync in EVERY:
        if fits(comm, sync):
            converge = {"metric": "loss", "value": 1e9}
            job = body.trainer(comm, configuration(ENDLESS, sync, train={"eval_every": 3, "converge": converge}))
            assert job.run() == "converged"


def a_signal_to_one_rank_stops_all(comm: Communicator, folder: Path) -> None:
    """Rank 0 saves, and waiting ranks are released."""
    for sync in EVERY:
        if not fits(comm, sync):
            continue
        place = folder / str(sync["strategy"])
        job = body.trainer(comm, configuration(ENDLESS, sync, checkpoint={"every": ENDLESS}), checkpoints=place)
        if comm.rank == comm.size - 1:
            job.sinks = [Each(lambda step: setattr(job, "stop", lambda: step >= 3))]  # noqa: B023
        with pytest.raises(Stopped):
            job.run()
        if comm.rank == 0:
            assert [p.name for p in checkpoint_folder.folders(place)] == [f"step-{job.progress.step:08d}"]


def state_moves_between_strategies(comm: Communicator, folder: Path) -> None:
    """Seven steps with one strategy and four with the other equal eleven steps with one of them."""
    served: dict[str, Any] = {"strategy": "async_ps"}
    if comm.size > 1:
        served |= {"servers": comm.size - 1, "placement": "dedicated"}
    alone = {"strategy": "allreduce"}
    adam = {"name": "AdamW", "lr": 0.01, "momentum": None}

    def run(sync: dict[str, Any], steps: int, save: Path | None, load: Path | None) -> Trainer | None:
        own = comm if sync is served else SingleCommunicator()
        if own is not comm and comm.rank:
            comm.barrier()
            return None
        config = configuration(steps, sync, optimizer=adam, checkpoint={"every": 7})
        job = body.trainer(own, config, checkpoints=save)
        if load is not None:
            job.restore(checkpoint.load(load, own, print))
        job.run()
        comm.barrier()
        return job

    through = run(alone, 11, None, None)
    for number, (first, second) in enumerate([(served, served), (alone, served), (served, alone)]):
        place = folder / str(number)
        run(first, 7, place / "checkpoints", None)
        again = run(second, 11, None, place)
        if comm.rank == 0:
            assert again is not None
            assert through is not None
            assert again.progress.step == 11
            body.assert_close(body.parameters(again), body.parameters(through), 1e-10)


def what_cannot_work_is_refused(comm: Communicator) -> None:
    wrong: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"strategy": "async_ps", "compression": "fp16"}, {}, "sync.compression"),
        ({"strategy": "async_gossip", "compression": "fp16"}, {}, "sync.compression"),
        ({"strategy": "ssp", "servers": comm.size + 1}, {}, "sync.servers"),
        ({"strategy": "async_ps", "servers": comm.size, "placement": "dedicated"}, {}, "sync.servers"),
        ({"strategy": "async_ps"}, {"optimizer": {"name": "LBFGS", "momentum": None, "weight_decay": None}}, "LBFGS"),
        ({"strategy": "parameter_server", "backup_workers": comm.size}, {}, "sync.backup_workers"),
    ]
    for sync, sections, words in wrong:
        with pytest.raises(UserError, match=words):
            body.trainer(comm, configuration(3, sync, **sections))


BODIES = [
    no_update_is_lost,
    one_worker_equals_one_process,
    ssp_without_staleness_is_synchronous,
    gaps_stay_bounded,
    a_slow_worker_delays_no_other,
    a_rank_that_finishes_early_waits_for_the_others,
    averages_keep_the_mean,
    rank_0_ends_the_run_for_all,
    what_cannot_work_is_refused,
]
SAVING = [a_signal_to_one_rank_stops_all, state_moves_between_strategies]

"""Asynchronous strategies on threads, and servers as state machines.

`tests/parallel/test_asynchronous.py` runs the bodies under mpirun.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cli.follow.blame import killed
from cli.follow.exits import EarlyExits
from cli.follow.state import JobState
from cli.follow.watchdog import Watchdog
from cli.hosts.machine import Machine
from cli.launch import openmpi
from cli.launch.job import Job
from cli.launch.placement import place
from hvd_train.comm.communicator import Communicator
from hvd_train.comm.messages import LOST, Message
from hvd_train.config import plugins
from hvd_train.config.document import Document
from hvd_train.config.resolve import read_section
from hvd_train.config.schema import SyncSection
from hvd_train.sync.servers.backup import FirstOfStep
from hvd_train.sync.servers.roster import FINISHED, LEFT, RankLost, Roster
from hvd_train.sync.servers.server import PARAMETERS, PUSH, Server
from hvd_train.sync.servers.shard import assign_runs
from hvd_train.sync.strategies.async_gossip import SharedReplica
from hvd_train.sync.strategies.async_ps import OnArrival
from hvd_train.sync.strategies.ssp import BoundedStaleness
from tests.bodies import asynchronous as body
from tests.bodies import training
from tests.engines import threads


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert [t.name for t in threading.enumerate() if t not in before and t.name.startswith("ddl-s")] == []


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("check", body.BODIES, ids=lambda f: f.__name__)
def test_bodies_on_threads(check: Any, size: int) -> None:
    threads.run(size, check)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("check", body.SAVING, ids=lambda f: f.__name__)
def test_bodies_that_save(check: Any, size: int, tmp_path: Path) -> None:
    threads.run(size, lambda comm: check(comm, tmp_path))


class FakeShard:
    """One number, from which gradients times the rate are subtracted."""

    def __init__(self) -> None:
        self.values = [torch.zeros(1)]
        self.rates: list[float] = []
        self.unused: list[set[int]] = []

    def step(self, gradients: list[Tensor], unused: set[int], rate: float) -> None:
        self.rates.append(rate)
        self.unused.append(unused)
        self.values[0] -= rate * gradients[0]


class FakeMail:
    """Records the answers of a server."""

    rank = 0

    def __init__(self) -> None:
        self.sent: list[tuple[int, float]] = []
        self.values: list[dict[str, Any]] = []

    def send(self, dst: int, kind: str, *tensors: Tensor, **values: Any) -> None:
        assert kind == PARAMETERS
        self.sent.append((dst, float(tensors[0])))
        self.values.append(values)

    def news(self) -> list[tuple[int, float]]:
        sent, self.sent = self.sent, []
        return sent


class Driven:
    """A server of three workers that receives messages from the test."""

    def __init__(self, make: Callable[..., Server], **options: Any) -> None:
        self.mail, self.shard, self.lost = FakeMail(), FakeShard(), []  # type: ignore[var-annotated]
        roster = Roster(["a", "b", "c"], range(3), {0: "evaluates"})
        self.server = make(self.shard, None, self.mail, roster, lambda: 0, self.lost.append, **options)

    def push(self, worker: int, gradient: float, *, rate: float = 1.0, samples: int = 1) -> list[tuple[int, float]]:
        values = {"taken": True, "rate": rate, "samples": samples, "unused": []}
        return self.hear(Message(worker, PUSH, values, [torch.tensor([float(gradient)])]))

    def hear(self, message: Message) -> list[tuple[int, float]]:
        self.server._take(message)
        self.server.settle()
        return self.mail.news()


def test_async_ps_answers_at_once_and_damps_stale_gradients() -> None:
    driven = Driven(OnArrival, window=0.0, damping=True)
    assert driven.push(0, 1) == [(0, -1)]
    assert driven.push(0, 1) == [(0, -2)]
    assert driven.push(1, 3) == [(1, -3)]  # two came in between: a third of the rate
    assert driven.push(0, 2) == [(0, -4)]
    assert driven.shard.rates == [1, 1, pytest.approx(1 / 3), 0.5]
    assert dict(driven.server.staleness) == {0: 2, 2: 1, 1: 1}
    assert driven.server.version == 4


def test_a_window_sums_gradients_and_ends_when_no_other_worker_can_push() -> None:
    driven = Driven(OnArrival, window=60.0, damping=False)
    assert driven.push(0, 1) == []
    assert driven.push(2, 2) == []
    assert 0 < (driven.server.timeout() or 0) <= 60
    assert driven.push(1, 4) == [(0, -7), (2, -7), (1, -7)]
    assert driven.shard.rates == [1.0]
    assert driven.server.timeout() is None
    driven.push(0, 1)
    driven.push(1, 1)
    assert driven.hear(Message(2, FINISHED)) == [(0, -9), (1, -9)]


def test_a_window_ends_without_messages() -> None:
    driven = Driven(OnArrival, window=0.01, damping=False)
    assert driven.push(0, 1) == []
    time.sleep(0.02)
    driven.server.settle()
    assert driven.mail.news() == [(0, -1)]


def test_ssp_delays_workers_ahead_of_the_slowest_working_one() -> None:
    driven = Driven(BoundedStaleness, staleness=1)
    assert driven.push(0, 1) == [(0, -1)]
    assert driven.push(0, 1) == []
    assert driven.push(1, 1) == [(1, -3)]
    assert driven.push(2, 1) == [(0, -4), (2, -4)]
    assert driven.server.report()["gap"] == 1


def test_ssp_answers_the_others_when_the_slowest_dies_or_finishes() -> None:
    for message in (Message(2, LOST), Message(2, FINISHED), Message(2, LEFT, {"lost": []})):
        driven = Driven(BoundedStaleness, staleness=0)
        assert driven.push(0, 1) == driven.push(1, 1) == []
        assert driven.hear(message) == [(0, -2), (1, -2)]
        assert driven.lost == ([2] if message.kind == LOST else [])


def test_backup_applies_the_first_gradients_and_drops_late_ones() -> None:
    driven = Driven(FirstOfStep, enough=2)
    assert driven.push(0, 1, samples=3) == []
    assert driven.push(1, 5, samples=1) == [(0, -2), (1, -2)]  # (3 * 1 + 1 * 5) / 4
    assert driven.push(2, 100) == [(2, -2)]
    assert driven.server.report()["dropped"] == 1
    assert driven.push(2, 1) == []
    assert driven.push(0, 1) == [(2, -3), (0, -3)]
    assert driven.server.version == 2


def test_backup_ends_when_too_few_are_left() -> None:
    driven = Driven(FirstOfStep, enough=2)
    driven.push(2, 1)
    assert driven.hear(Message(0, FINISHED)) == []
    assert driven.hear(Message(1, FINISHED)) == [(2, -1)]
    assert driven.mail.values[-1] == {"over": "length"}


def test_backup_continues_with_fewer_workers_after_a_loss() -> None:
    driven = Driven(FirstOfStep, enough=2)
    driven.push(0, 1)
    assert driven.hear(Message(1, LOST)) == []
    assert driven.hear(Message(2, LOST)) == [(0, -1)]
    assert driven.mail.values[-1] == {"over": None}


def test_a_worker_that_skips_a_step_is_answered_and_does_not_count() -> None:
    skipped = {"taken": False, "rate": 1.0, "samples": 1, "unused": []}
    for make, options in (
        (OnArrival, {"window": 0.0, "damping": False}),
        (BoundedStaleness, {"staleness": 9}),
        (FirstOfStep, {"enough": 1}),
    ):
        driven = Driven(make, **options)  # type: ignore[arg-type]
        assert driven.hear(Message(1, PUSH, skipped)) == [(1, 0)]
        assert driven.shard.rates == []


def test_a_vital_rank_that_dies_is_named_with_what_it_does() -> None:
    driven = Driven(BoundedStaleness, staleness=0)
    with pytest.raises(RankLost, match="rank 0 on a is gone, which evaluates"):
        driven.hear(Message(0, LOST))


def test_a_rank_that_is_lost_after_it_left_does_not_count_as_lost() -> None:
    roster = Roster(["a", "b"], range(2), {1: "serves"})
    assert roster.update(Message(1, LEFT, {"lost": []}))
    assert roster.update(Message(1, LOST))
    assert (roster.lost, roster.stopped, roster.present) == ([], True, [0])


@pytest.mark.parametrize("servers", [1, 2, 3, 7])
@pytest.mark.parametrize("whole", [False, True])
def test_runs_cover_all_parameters_once_in_order(servers: int, whole: bool) -> None:
    sizes = [[5, 1, 12], [7]]
    dealt = assign_runs(sizes, servers, whole=whole)
    for tensor, lengths in enumerate(sizes):
        runs = [run for of in dealt for run in of if run.tensor == tensor]
        assert [i for run in runs for i in range(run.start, run.stop)] == list(range(sum(lengths)))
        for run in runs:
            assert sum(p.stop - p.start for p in run.pieces) == run.stop - run.start
    pieces = [p for of in dealt for run in of for p in run.pieces]
    assert {p.index for p in pieces} == {0, 1, 2, 3}
    assert not whole or all(p.stop - p.start == [5, 1, 12, 7][p.index] for p in pieces)


def test_replicas_that_average_in_all_directions_at_once_keep_their_sum() -> None:
    """Threads step and average in any order: the sum of the replicas is exact."""
    replicas = [SharedReplica([torch.full((3,), float(2**i), dtype=torch.float64)]) for i in range(3)]

    def work(number: int) -> None:
        own = replicas[number]
        for _ in range(5):
            own._own[0].add_(8.0)
            own.settle()
            own.add(replicas[(number + 1) % 3].average(own.values()))

    together = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    total = sum(r.values()[0] for r in replicas)
    assert torch.equal(total, torch.full((3,), 7.0 + 3 * 5 * 8, dtype=torch.float64))  # type: ignore[arg-type]


class Died(Exception):
    pass


def die(job: Any) -> None:
    """Die as by SIGKILL: connections end without a message."""
    for mail in (getattr(job.strategy, "_requests", None), job.strategy.members.mail):
        if mail is not None:
            mail.hang_up()
    raise Died


EPOCHS = {"steps": None, "epochs": 3}


@pytest.mark.parametrize("sync", body.EVERY, ids=lambda s: s["strategy"])
def test_workers_continue_after_a_loss_and_share_its_samples(sync: dict[str, Any]) -> None:
    reported: list[int] = []

    def run(comm: Communicator) -> Any:
        job = training.trainer(comm, body.configuration(0, sync, train=EPOCHS), report=reported.append)
        if comm.rank == 2:
            job.sinks = [body.Each(lambda step: die(job) if step == 2 else None)]
        try:
            job.run()
        except Died:
            return None
        return job.strategy.members.lost, job.strategy.members.share(9), job.epochs

    *living, dead = threads.run(3, run)
    assert dead is None
    assert [one[:2] for one in living] == [([2], (0, 2)), ([2], (1, 2))]
    assert max(epochs for *_, epochs in living) == 3, "a backup worker may be behind at the end"
    assert living[0][2] == 3 or "backup_workers" in sync
    assert reported == [2]


@pytest.mark.parametrize("dead", [0, 2])
@pytest.mark.parametrize("sync", body.EVERY, ids=lambda s: s["strategy"])
def test_no_rank_continues_without_rank_0_or_a_server(sync: dict[str, Any], dead: int) -> None:
    served = sync["strategy"] != "async_gossip"
    if dead and not served:
        return
    sync = {**sync, **({"placement": "dedicated"} if served else {})}

    def run(comm: Communicator) -> str:
        job = training.trainer(comm, body.configuration(body.ENDLESS, sync))
        if comm.rank == dead == 0:
            job.sinks = [body.Each(lambda step: die(job) if step == 3 else None)]
        if comm.rank == dead == 2:
            job.strategy.members.serve = lambda: die(job)  # type: ignore[method-assign,return-value,func-returns-value]
        try:
            return str(job.run())
        except Died:
            return ""
        except RankLost as error:
            return str(error)

    does = "evaluates and saves" if dead == 0 else "holds parameters"
    said = threads.run(3, run)
    assert said.pop(dead) == ""
    assert all(f"rank {dead} on " in text and does in text for text in said), said


def test_an_idle_server_takes_no_time() -> None:
    def run(comm: Communicator) -> float:
        job = training.trainer(comm, body.configuration(2, {"strategy": "async_ps", "placement": "dedicated"}))
        used = [math.inf]

        def wait(step: int) -> None:
            before = time.process_time()
            time.sleep(0.5)
            used.append(time.process_time() - before)

        job.sinks = [body.Each(wait)]
        job.run()
        return min(used)

    assert min(threads.run(2, run)) < 0.05


def test_answers_of_a_server_count_as_training_while_its_rank_evaluates() -> None:
    def run(comm: Communicator) -> tuple[int, int]:
        job = training.trainer(comm, body.configuration(6, {"strategy": "async_ps"}, train={"eval_every": 1}))
        agreed = job.strategy.view.agreed

        @contextmanager
        def slowly() -> Iterator[None]:
            time.sleep(0.05)
            with agreed():
                yield

        job.strategy.view.agreed = slowly  # type: ignore[method-assign]
        job.run()
        return job.accounting.bytes_sent, 6 * 8 * sum(
            p.numel() for p in job.optimizer.model.parameters() if p.requires_grad
        )

    (sent, answers), _ = threads.run(2, run)
    assert sent >= answers


def test_the_failure_of_a_server_thread_fails_its_rank() -> None:
    def run(comm: Communicator) -> None:
        job = training.trainer(comm, body.configuration(3, {"strategy": "async_ps"}))
        start = job.strategy.start

        def broken(model: Any) -> None:
            start(model)
            job.strategy._server.shard.step = lambda *a: 1 / 0  # type: ignore[attr-defined]

        job.strategy.start = broken  # type: ignore[method-assign]
        job.run()

    with pytest.raises(ZeroDivisionError):
        threads.run(1, run)


@pytest.mark.parametrize("sync", body.EVERY, ids=lambda s: s["strategy"])
def test_many_short_runs_all_end(sync: dict[str, Any]) -> None:
    config = body.configuration(3, sync)

    def run(comm: Communicator) -> list[int]:
        steps = []
        for _ in range(10):
            job = training.trainer(comm, config)
            job.run()
            steps.append(job.progress.step)
        return steps

    for steps in threads.run(3, run):
        assert len(steps) == 10
        assert set(steps) <= ({1, 2, 3} if "backup_workers" in sync else {3})


def test_the_launcher_knows_whose_ranks_outlive_others_without_importing_them() -> None:
    def asynchronous(name: str, **options: Any) -> bool:
        return read_section(SyncSection, Document({"strategy": name, **options}, "test")).asynchronous

    found = {name for name in plugins.names("hvd_train.sync.strategies") if asynchronous(name)}
    assert found == {"async_ps", "ssp", "async_gossip"}
    assert asynchronous("parameter_server", backup_workers=1)
    assert not asynchronous("parameter_server", backup_workers=0)


@pytest.mark.parametrize(
    ("outlives", "version", "recovers"), [(True, (5, 0), True), (False, (5, 0), False), (True, (4, 1), False)]
)
def test_mpirun_lets_the_others_go_on_where_they_can(outlives: bool, version: tuple[int, ...], recovers: bool) -> None:
    job = Job(("program",), 2, "mpi", outlives=outlives)
    placement = place(job, Machine("n0", False, (4,)))
    assert ("--enable-recovery" in openmpi.options(job, placement, version, root=False)) == recovers


def started(world_size: int) -> JobState:
    state = JobState(world_size)
    for rank in range(world_size):
        state.record({"event": "started", "rank": rank, "host": "a", "machine": "m", "pid": 100 + rank}, 0.0)
    return state


def test_an_exit_that_the_run_reports_is_no_failure_and_the_next_one_is_seen() -> None:
    state = started(3)
    exits = EarlyExits(state)
    exits.process_ended("m", 102, 1.0)
    assert not exits.unreported(4.0, 4.0)
    assert exits.unreported(5.5, 4.0)
    state.record({"event": "lost", "rank": 0, "host": "a", "machine": "m", "pid": 100, "lost": 2}, 5.5)
    assert exits.first(5.5) is None
    exits.process_ended("m", 101, 6.0)
    first = exits.first(6.0)
    assert first is not None
    assert first.rank is not None
    assert first.rank.number == 1


def test_lost_ranks_need_no_heartbeat() -> None:
    state = started(2)
    watchdog = Watchdog(state, 300, 0.0)
    state.record({"event": "lost", "rank": 0, "host": "a", "machine": "m", "pid": 100, "lost": 1}, 1.0)
    for now in range(2, 400, 2):
        state.record({"event": "started", "rank": 0, "host": "a", "machine": "m", "pid": 100}, now)
        assert watchdog.check(now) is None


def test_a_launchers_word_on_a_lost_rank_accuses_nobody() -> None:
    text = "process rank {} with PID 12 on node a exited on signal 9"
    assert killed(text.format(2), {}, "a", {2}) is None
    both = killed(text.format(2) + "\n" + text.format(1), {}, "a", {2})
    assert both is not None
    assert both.rank == 1

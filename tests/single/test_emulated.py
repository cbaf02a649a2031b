"""Emulated networks and stragglers.

Costs are computed by hand, and a clock that only sleep advances measures times.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.comm.messages import LOST, Message
from hvd_train.comm.wrappers import emulated as _emulated
from hvd_train.comm.wrappers.emulated import Arrivals, EmulatedNetwork, EmulationState, Pace, emulated
from hvd_train.compute import clock as clocks
from hvd_train.compute.straggler import SlowClock
from hvd_train.training import accounting
from tests.bodies import comm as comm_bodies
from tests.bodies import mailbox as mailbox_bodies
from tests.bodies import training
from tests.engines import threads

FAST = {"latency_ms": 0.001, "gbps": 1000.0}
N = EmulatedNetwork(latency=3.0, bandwidth=10.0)


class VirtualTime(threading.local):
    """A clock per thread that only `sleep` advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    virtual = VirtualTime()
    monkeypatch.setattr(_emulated, "time", virtual)
    return virtual


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (N.all_reduce(4, 80), 2 * 3 * 3 + 2 * 3 / 4 * 80 / 10),
        (N.all_reduce(2, 80), 2 * 3 + 80 / 10),
        (N.all_reduce(1, 80), 0),
        (N.all_reduce(4, 0), 18),
        (N.reduce_scatter(4, 80), 3 * 3 + 3 / 4 * 80 / 10),
        (N.all_gather([20, 20, 20]), 2 * 3 + 2 * 20 / 10),
        (N.all_gather([0, 60, 0]), 2 * 3 + 2 * 60 / 10),
        (N.all_gather([60]), 0),
        (N.broadcast(4, 80), 3 * 3 + 80 / 10),
        (N.broadcast(1, 80), 0),
        (N.exchange(80, 30), 3 + 80 / 10),
        (N.exchange(30, 80), 3 + 80 / 10),
        (N.exchange(0, 0), 0),
        (N.barrier(1), 0),
        (N.barrier(2), 3),
        (N.barrier(4), 6),
        (N.barrier(5), 9),
        (N.transfer(80), 8),
        (EmulatedNetwork(latency=0.5).all_reduce(4, 1 << 40), 3),
        (EmulatedNetwork(bandwidth=1e9 / 8).all_reduce(4, 4_000_000), 0.048),
    ],
)
def test_costs(cost: float, expected: float) -> None:
    assert cost == pytest.approx(expected)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("body", comm_bodies.BODIES, ids=lambda body: body.__name__)
def test_bodies_of_engines(body: Callable[[Communicator], None], size: int) -> None:
    threads.run(size, lambda comm: body(emulated(comm, **FAST)), timeout=30)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("body", mailbox_bodies.BODIES, ids=lambda body: body.__name__)
def test_bodies_of_mailboxes(body: Callable[[Communicator], None], size: int) -> None:
    threads.run(size, lambda comm: body(emulated(comm, **FAST)))


def test_ranks_share_no_memory_and_groups_are_emulated_too(clock: VirtualTime) -> None:
    def body(world: Communicator) -> float:
        comm = emulated(world, 1000.0)
        assert world.shared_memory is not None
        assert comm.shared_memory is None
        group = comm.split(comm.rank % 2)
        assert group.shared_memory is None
        group.all_reduce_(torch.zeros(3))
        comm.barrier()
        return clock.now

    assert threads.run(4, body) == [100 + 2 + 2] * 4


def took(clock: VirtualTime, operation: Callable[[], object]) -> float:
    before = clock.now
    operation()
    return clock.now - before


def test_each_operation_takes_its_time(clock: VirtualTime) -> None:
    """Four ranks, links of 3 s and 10 bytes per second."""

    def body(world: Communicator) -> list[float]:
        comm = emulated(world, 3000.0, 10 * 8 / 1e9)
        x, ring = torch.zeros(20), ((world.rank + 1) % 4, (world.rank - 1) % 4)
        return [
            took(clock, lambda: comm.all_reduce_(x)),
            took(clock, lambda: comm.all_reduce_(x.half())),
            took(clock, lambda: comm.reduce_scatter(x)),
            took(clock, lambda: comm.all_gather(x)),
            took(clock, lambda: comm.broadcast_(x, 2)),
            took(clock, lambda: comm.all_to_all([x, x, x, x])),
            took(clock, lambda: comm.exchange(x, *ring)),
            took(clock, lambda: comm.exchange(x, comm.rank, comm.rank)),
            took(clock, comm.barrier),
        ]

    expected = [30, 24, 15, 33, 17, 27, 11, 0, 6]
    assert threads.run(4, body) == [pytest.approx(expected)] * 4


def test_time_runs_from_issue_and_two_operations_share_the_link(clock: VirtualTime) -> None:
    def body(world: Communicator) -> list[float]:
        comm = emulated(world, gbps=10 * 8 / 1e9)
        x = [torch.zeros(20) for _ in range(3)]
        works = [comm.all_reduce_async_(x[0]), comm.all_reduce_async_(x[1])]
        clock.sleep(5)
        ends = []
        for work in works:
            work.wait()
            ends.append(clock.now - 100)
        late = comm.all_reduce_async_(x[2])
        clock.sleep(50)
        late.wait()
        late.wait()
        return [*ends, clock.now - 100]

    assert threads.run(2, body) == [[8, 16, 66]] * 2


def test_operations_aside_take_no_time_and_do_not_wait_for_the_link(clock: VirtualTime) -> None:
    def body(world: Communicator) -> float:
        comm = emulated(world, gbps=10 * 8 / 1e9)
        work = comm.all_reduce_async_(torch.zeros(20))
        with comm.aside():
            comm.all_reduce_(torch.zeros(20))
            comm.barrier()
            with comm.aside():
                comm.all_gather(torch.zeros(20))
            comm.split(0).all_reduce_(torch.zeros(20))
            assert clock.now == 100
        work.wait()
        return clock.now

    assert threads.run(2, body) == [108] * 2


def test_bytes_are_those_of_the_engine() -> None:
    comm = SingleCommunicator()
    above = emulated(comm, **FAST)
    comm.traffic.add(5)
    assert above.bytes_sent == 5
    above.traffic.add(2)
    assert comm.bytes_sent == 7


def test_a_straggler_sleeps_in_proportion_to_its_computing(clock: VirtualTime) -> None:
    emulation = EmulationState(N, Pace(5.0))
    clock.sleep(1)
    assert took(clock, lambda: emulation.run(lambda: None, 2.0)) == 2, "not before training"
    with emulation.aside():
        clock.sleep(10)
    clock.sleep(1)
    assert took(clock, lambda: emulation.run(lambda: clock.sleep(7), 2.0)) == 4 + 7 + 2
    assert took(clock, lambda: emulation.run(lambda: None, 2.0)) == 2
    clock.sleep(1)
    with emulation.aside():
        assert clock.now - 100 == 1 + 2 + 10 + 1 + 13 + 2 + 1 + 4
        emulation.run(lambda: None, 2.0)
    assert clock.now - 100 == 34


def test_other_threads_of_a_straggler_are_not_slower_and_do_not_stop_its_clock(clock: VirtualTime) -> None:
    emulation = EmulationState(EmulatedNetwork(), Pace(5.0))
    with emulation.aside():
        pass
    clock.sleep(1)
    spent = []

    def serve() -> None:
        clock.sleep(1)
        spent.append(took(clock, lambda: emulation.run(lambda: None, 0.0)))

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
    assert spent == [0.0]
    clock.sleep(1)
    assert took(clock, lambda: emulation.run(lambda: None, 0.0)) == 8


def message(source: int, kind: str = "m") -> Message:
    return Message(source, kind)


def drained(arrivals: Arrivals, clock: VirtualTime, until: int) -> list[tuple[float, str]]:
    """Return when each message has arrived, polling once a second."""
    found = []
    for _ in range(until):
        while came := arrivals.get(0):
            found.append((clock.now - 100, came.kind))
        clock.sleep(1)
    return found


def test_a_message_arrives_with_its_last_byte(clock: VirtualTime) -> None:
    arrivals = Arrivals()
    arrivals.put(message(1), delay=3, seconds=4)
    assert drained(arrivals, clock, 10) == [(7, "m")]


def test_messages_of_several_ranks_share_the_link_in_the_order_of_their_first_bytes(clock: VirtualTime) -> None:
    arrivals = Arrivals()
    arrivals.put(message(1, "far"), delay=6, seconds=4)
    arrivals.put(message(2, "near"), delay=1, seconds=4)
    arrivals.put(message(3, "then"), delay=2, seconds=4)
    assert drained(arrivals, clock, 20) == [(5, "near"), (9, "then"), (13, "far")]


def test_lost_follows_the_last_message_of_a_rank(clock: VirtualTime) -> None:
    arrivals = Arrivals()
    arrivals.put(message(1, "last"), delay=3, seconds=4)
    arrivals.put(message(1, LOST), delay=0, seconds=0)
    assert drained(arrivals, clock, 10) == [(7, "last"), (7, LOST)]


def test_a_late_receiver_finds_all_messages_that_have_arrived(clock: VirtualTime) -> None:
    arrivals = Arrivals()
    for _ in range(3):
        arrivals.put(message(1), delay=0, seconds=2)
    clock.sleep(5)
    assert [arrivals.get(0), arrivals.get(0)] == [message(1)] * 2
    assert arrivals.get(0) is None
    clock.sleep(1)
    assert arrivals.get(0) == message(1)


def test_messages_take_latency_and_transfer_and_do_not_block_senders() -> None:
    """Ranks 1 and 2 send 0.15 s each over 0.05 s of latency to rank 0.

    Its link carries one message at a time.
    """

    def body(world: Communicator) -> list[float]:
        comm = emulated(world, 50.0, 0.008)
        mail = comm.mailbox()
        world.barrier()
        began, found = time.monotonic(), []
        if comm.rank:
            mail.send(0, "big", torch.zeros(150_000, dtype=torch.uint8))
            found = [time.monotonic() - began]
        else:
            assert mail.receive(0.01) is None
            mail.send(0, "own", torch.zeros(150_000_000, dtype=torch.uint8))
            assert mailbox_bodies.expect(mail, "own").source == 0
            for _ in range(2):
                mailbox_bodies.expect(mail, "big")
                found.append(time.monotonic() - began)
        world.barrier()
        mail.close()
        return found

    (first, second), *sent = threads.run(3, body)
    assert first >= 0.05 + 0.15
    assert second >= 0.05 + 2 * 0.15
    assert max(max(s) for s in sent) < 0.15, "a sender waited for its link"


def test_messages_of_one_sender_share_its_link() -> None:
    def body(world: Communicator) -> float:
        comm = emulated(world, gbps=0.008)
        mail = comm.mailbox()
        world.barrier()
        began = time.monotonic()
        if comm.rank == 0:
            for dst in (1, 2):
                mail.send(dst, "big", torch.zeros(150_000, dtype=torch.uint8))
        else:
            mailbox_bodies.expect(mail, "big")
        seconds = time.monotonic() - began
        world.barrier()
        mail.close()
        return seconds

    assert threads.run(3, body)[2] >= 0.3


def test_waiting_for_a_message_takes_no_cpu_time() -> None:
    def body(world: Communicator) -> float:
        mail = emulated(world, 500.0).mailbox()
        world.barrier()
        began, before = time.monotonic(), time.process_time()
        mail.send(1 - world.rank, "late")
        assert mailbox_bodies.expect(mail, "late").values == {}
        used = time.process_time() - before
        assert time.monotonic() - began >= 0.5
        world.barrier()
        mail.close()
        return used

    assert max(threads.run(2, body)) < 0.1


def test_a_closed_mailbox_leaves_no_thread() -> None:
    before = threading.active_count()
    emulated(SingleCommunicator(), **FAST).mailbox().close()
    emulated(SingleCommunicator(), **FAST).mailbox().hang_up()
    assert threading.active_count() == before


class Heavy(nn.Module):
    """A model whose forward pass takes a second of virtual time."""

    clock: VirtualTime

    def __init__(self, inputs: int = 6, outputs: int = 3) -> None:
        super().__init__()
        self.inner = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        self.clock.sleep(1)
        out: Tensor = self.inner(x)
        return out


def heavy(**sync: Any) -> Any:
    """Return a configuration of 8 steps with two evaluations and 21 parameters of float64."""
    return training.configuration(
        model={"target": "tests.single.test_emulated:Heavy"},
        train={"steps": 8, "epochs": None, "eval_every": 4, "log_every": 3},
        sync={"fusion_mb": 1.0, **sync},
    )


@pytest.mark.parametrize("sync", [{}, {"strategy": "local_sgd", "period": 4}], ids=str)
def test_the_duration_of_training_follows_from_its_bytes(
    sync: dict[str, Any], clock: VirtualTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks at 10 bytes per second, rank 1 three times slower.

    Metrics, stopping and evaluations take no time.
    """
    Heavy.clock = clock
    monkeypatch.setattr(accounting, "time", clock)
    monkeypatch.setattr(clocks, "time", clock)

    def body(world: Communicator) -> tuple[float, float, int]:
        comm = emulated(world, gbps=10 * 8 / 1e9, factor=3.0 if world.rank else 1.0)
        job = training.trainer(comm, heavy(**sync), clock=SlowClock(comm.pace))
        return took(clock, job.run), job.clock.computing, job.accounting.bytes_sent

    (fast, computing, sent), slow = threads.run(2, body)
    assert sent >= 21 * 8 * (2 if sync else 8)
    start, evaluations = 21 * 8 / 10, 2
    assert (fast, computing) == pytest.approx((8 + start + evaluations + sent / 10, 8))
    assert slow[:2] == pytest.approx((3 * 8 + start + evaluations + sent / 10, 3 * 8))


@pytest.mark.parametrize("sync", [{"shard_optimizer": False}, {"strategy": "local_sgd", "period": 3}])
def test_emulation_does_not_change_the_result(sync: dict[str, Any]) -> None:
    config = training.configuration(train={"epochs": 1}, sync=sync)
    plain = threads.run(2, lambda comm: training.trained(comm, config))
    slow = threads.run(2, lambda comm: training.trained(emulated(comm, 0.1, 1.0), config))
    for name, value in plain[0].items():
        assert torch.equal(value, slow[0][name]), name


def test_without_a_limit_nothing_takes_time() -> None:
    assert emulated(SingleCommunicator()).network == EmulatedNetwork(0.0, math.inf)

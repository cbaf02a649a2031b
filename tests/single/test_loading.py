"""Loaders: equal batches for any workers, the ends of workers, and what is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from hvd_train.config import plugins
from hvd_train.data.base import TensorSplit
from hvd_train.data.loading.channel import Channel
from hvd_train.data.loading.failure import LoadingError
from hvd_train.data.loading.loader import Kind, Loader, ahead, chosen
from hvd_train.data.loading.parcel import INLINE, Parcel, opened
from hvd_train.data.loading.processes import Processes, described
from hvd_train.data.samples import TransformedSplit
from hvd_train.data.spec import DataSpec
from hvd_train.data.transform import TransformContext
from hvd_train.errors import ExitCode, UserError
from tests.bodies.loading import Batches, Fatal, Homeless, Probe, Squares

PLAN = torch.randperm(40, generator=torch.Generator().manual_seed(1)).split(7)


@pytest.fixture(scope="module")
def pools() -> Iterator[list[Processes]]:
    """Two pools, which import torch at the same time."""
    found = [Processes(3, 2), Processes(2, 2)]
    yield found
    for pool in found:
        pool.close()


@pytest.fixture
def processes(pools: list[Processes]) -> Processes:
    return pools[0]


@pytest.fixture
def doomed(pools: list[Processes]) -> Processes:
    """A pool for one test, which it does not survive."""
    return pools[1]


def through(value: Any) -> Any:
    """Return what a receiver gets for `value`."""
    parcel = Parcel(value)
    file = os.dup(parcel.file) if parcel.file >= 0 else -1
    parcel.close()
    return opened(parcel.inline, file)


def assert_equal(one: Any, other: Any) -> None:
    assert one.keys() - {"process"} == other.keys() - {"process"}
    for key in one.keys() - {"process"}:
        a, b = one[key], other[key]
        assert torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(5000).reshape(50, 100).T,
        torch.randn(700).to(torch.bfloat16),
        torch.randn(600, dtype=torch.complex64).conj(),
        torch.rand(3000) > 0.5,
        torch.empty(0, 3),
        torch.tensor(7),
        torch.ones(2, requires_grad=True),
    ],
)
def test_a_parcel_keeps_tensors(tensor: torch.Tensor) -> None:
    (found,) = through([tensor])
    assert torch.equal(found, tensor.resolve_conj())
    assert found.dtype == tensor.dtype
    assert found.requires_grad == tensor.requires_grad
    found.detach().zero_()  # it can be written to


def test_a_parcel_carries_nested_values_and_arrays() -> None:
    value = {"a": [np.arange(3000), np.float32(2)], "b": ("text" * INLINE, None), "c": torch.zeros(2)}
    found = through(value)
    assert np.array_equal(found["a"][0], value["a"][0])
    assert found["b"] == value["b"]
    assert [type(x) for x in found["a"]] == [np.ndarray, np.float32]


def test_a_parcel_carries_the_path_of_a_memory_map(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(10**6))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    parcel = Parcel(mapped)
    assert parcel.file < 0
    assert len(parcel.inline) < INLINE
    assert np.array_equal(opened(parcel.inline, -1), mapped)
    assert np.array_equal(through(mapped[10:20]), np.arange(10, 20))


def test_a_parcel_that_finds_no_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(
        LoadingError, match=r"no memory for 1\.0 MiB .* \(No space left on device\); reduce data\.workers"
    ):
        Parcel(torch.zeros(2**18))


@pytest.mark.parametrize(("workers", "kind"), [(0, "processes"), (1, "threads"), (3, "threads")])
def test_batches_are_equal_for_any_workers(workers: int, kind: Kind) -> None:
    split = Batches(Squares())
    loader = Loader(workers, kind, prefetch=2)
    loader.prepare(split)
    for found, positions in zip(loader.load(split, PLAN), PLAN, strict=True):
        assert_equal(found, split.batch(positions))
    loader.close()


def test_processes_make_equal_batches_in_every_epoch(processes: Processes) -> None:
    split = Batches(Squares())
    processes.prepare(split)
    workers = set()
    for epoch in range(2):
        now = split.at(epoch)
        for found, positions in zip(processes.load(now, PLAN), PLAN, strict=True):
            assert_equal(found, now.batch(positions))
            workers.add(found["process"])
    assert len(workers) == 3
    assert os.getpid() not in workers


def test_a_plan_can_begin_anywhere_and_be_left_early(processes: Processes) -> None:
    split = Batches(Squares())
    begun = processes.load(split, PLAN)
    next(begun)
    inner = list(processes.load(split, PLAN[2:]))  # while the first load has batches on their way
    for found, positions in zip(inner, PLAN[2:], strict=True):
        assert_equal(found, split.batch(positions))
    assert_equal(next(begun), split.batch(PLAN[1]))
    begun.close()
    assert_equal(next(processes.load(split, PLAN)), split.batch(PLAN[0]))


def test_an_endless_plan_is_read_only_as_far_as_batches_are_made(processes: Processes) -> None:
    read = []

    def plan() -> Iterator[torch.Tensor]:
        for number in range(40):
            read.append(number)
            yield torch.tensor([number])

    batches = processes.load(Batches(Squares()), plan())
    assert len(read) == 3 * 2
    next(batches)
    assert len(read) == 3 * 2 + 1
    batches.close()


def test_samples_are_sent_once(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    split, sent = Batches(Squares()), []
    processes.prepare(split)
    plain = Channel.send_parcel
    monkeypatch.setattr(Channel, "send_parcel", lambda self, parcel: sent.append(parcel.file) or plain(self, parcel))
    list(processes.load(split.at(1), PLAN))
    assert sent
    assert set(sent) == {-1}


def test_signals_for_ranks_do_not_end_workers(processes: Processes) -> None:
    split = Batches(Squares())
    workers = {batch["process"] for batch in processes.load(split, PLAN)}
    parent = psutil.Process(min(workers)).ppid()
    for process in (*workers, parent):
        assert os.getpgid(process) == parent  # signals for the group of the rank do not reach it
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            os.kill(process, number)
    assert {batch["process"] for batch in processes.load(split, PLAN)} == workers


def test_workers_have_one_thread_and_the_path_of_the_rank(processes: Processes) -> None:
    (batch,) = processes.load(Batches(Probe()), [torch.tensor([0])])
    assert batch["threads"].item() == 1
    assert batch["tasks"].item() == 1
    assert batch["mpi"] == ["False"]
    assert batch["path"] == [repr(sys.path)]


def test_an_exception_shows_the_traceback_and_the_sample(processes: Processes) -> None:
    with pytest.raises(LoadingError) as caught:
        list(processes.load(Batches(Fatal()), [torch.tensor([4, 6])]))
    lines = str(caught.value).splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2:] == [
        "tests.bodies.loading.Unpicklable: a and b",
        "data: a worker process raised this while it made fatal[6]",
    ]


def test_samples_that_cannot_be_pickled_are_refused(processes: Processes) -> None:
    items = Squares()
    items.function = lambda: 0  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"squares: cannot be sent to worker processes .* data\.worker_type: threads"):
        processes.prepare(Batches(items))
    with pytest.raises(
        UserError, match=r"squares: a worker process cannot unpickle it \(LookupError: this process has"
    ):
        list(processes.load(Batches(Homeless()), PLAN))


def test_a_worker_that_dies_is_named_with_its_sample(doomed: Processes) -> None:
    workers = {batch["process"] for batch in doomed.load(Batches(Squares()), torch.tensor([[1], [2]]).unbind())}
    processes = [psutil.Process(worker) for worker in workers]
    with pytest.raises(LoadingError) as caught:
        list(doomed.load(Batches(Fatal()), torch.tensor([[1], [5], [7]]).unbind()))
    assert str(caught.value) == (
        "data: worker process 1 was killed by SIGKILL (the kernel does so if the memory of the host is exhausted) "
        "while it made fatal[5]"
    )
    assert caught.value.exit_code == ExitCode.FAILURE
    doomed.close()  # the other worker never ends its sample
    assert psutil.wait_procs(processes, timeout=1)[1] == []


def test_the_end_of_a_worker_is_described() -> None:
    assert described(3) == "ended with exit code 3"
    assert described(-signal.SIGSEGV) == "was killed by SIGSEGV"
    assert described(-60) == "was killed by signal 60"


RANK = """
import torch
from hvd_train.data.loading.processes import Processes
from tests.bodies.loading import Batches, Endless
next(Processes(1, 1).load(Batches(Endless()), torch.arange(1).split(1)))
"""


def test_nothing_is_left_of_a_rank_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", RANK], stdout=subprocess.PIPE, text=True) as rank:
        assert rank.stdout is not None
        worker, server = (psutil.Process(int(word)) for word in rank.stdout.readline().split())
        rank.kill()
        assert psutil.wait_procs([worker, server], timeout=10)[1] == []


def test_auto_has_workers_for_samples_that_take_time(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, split = TensorSplit(torch.zeros(2, 1), torch.zeros(2), torch.zeros(2)), Batches(Squares())
    assert chosen(3, arrays, 1) == 3
    monkeypatch.setattr(time, "perf_counter", iter([0.0, 0.003, 1.0, 1.016] * 9).__next__)
    assert chosen("auto", arrays, 10**6) == 0
    assert chosen("auto", split, 2) == 0
    for threads, workers in ((1, 1), (4, 2), (64, 8)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert chosen("auto", split, 3) == workers


def test_auto_measures_arrays_whose_images_are_transformed(monkeypatch: pytest.MonkeyPatch) -> None:
    crop = plugins.create(
        "hvd_train.data.transforms", "crop", TransformContext(DataSpec((1, 4, 4), 2, "classification"))
    )
    split = TransformedSplit(TensorSplit(torch.zeros(9, 1, 4, 4), torch.zeros(9), torch.zeros(9)), [crop], 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(time, "perf_counter", iter([0.0, 0.01] * 2).__next__)
    assert (chosen("auto", split, 3), chosen("auto", split.split, 3)) == (2, 0)


def test_auto_has_no_worker_for_samples_that_keep_the_only_processor_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    split = Batches(Squares())
    for threads, busy, workers in ((1, 0.009, 0), (1, 0.007, 1), (2, 0.009, 1)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        monkeypatch.setattr(time, "perf_counter", iter([0.0, 0.01]).__next__)
        monkeypatch.setattr(time, "process_time", iter([1.0, 1.0 + busy]).__next__)
        assert chosen("auto", split, 3) == workers


def test_a_thread_finishes_the_next_batch_while_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    finished: list[int] = []

    def finish(batch: int) -> int:
        finished.append(batch)
        return -batch

    batches = ahead(iter(range(5)), finish, 0)
    assert next(batches) == 0
    deadline = time.monotonic() + 5
    while finished != [0, 1] and time.monotonic() < deadline:
        time.sleep(0.001)
    assert finished == [0, 1]
    assert list(batches) == [-1, -2, -3, -4]
    assert threading.active_count() == 1 or not any(t.name.startswith("ddl-pin") for t in threading.enumerate())

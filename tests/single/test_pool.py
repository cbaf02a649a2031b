"""What lets a rank run many documents: requests, settings that are restored, agreement on a failure."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.follow import ranks
from cli.follow.guard import Guards
from cli.follow.record import RunRecord
from cli.follow.state import JobState
from cli.follow.watchdog import Watchdog
from cli.hosts.hostfile import Host
from cli.launch.job import Command
from cli.tune.pool import PoolJob
from cli.tune.runners.warm import Warm, one_line
from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.compute.activity import Activity
from hvd_train.data.loading.processes import Processes
from hvd_train.errors import UserError
from hvd_train.rank import internal
from hvd_train.rank.pool import Requests
from hvd_train.rank.process import restored
from hvd_train.rank.signals import StopRequest
from hvd_train.rank.worker import first_in_time
from tests.engines import threads


def test_requests_reach_all_ranks_and_stops_the_run_that_they_name() -> None:
    reader, writer = os.pipe()
    of_process, mailbox = StopRequest(), SingleCommunicator().mailbox()
    requests = Requests(os.fdopen(reader, "rb"), mailbox, 1, of_process)

    def ask(request: dict[str, Any]) -> None:
        os.write(writer, json.dumps(request).encode() + b"\n")

    ask({"run": 1, "document": "d", "variables": {}})
    message = mailbox.receive(10)
    assert message is not None
    assert (message.kind, message.values) == ("run", {"run": 1, "document": "d", "variables": {}})
    first = requests.stop_of(1)
    ask({"stop": 1})
    ask({"run": 2, "document": "d", "variables": {}})
    assert mailbox.receive(10) is not None
    assert (first.is_set(), requests.stop_of(2).is_set(), of_process.is_set()) == (True, False, False)
    second = requests.stop_of(2)
    os.close(writer)
    ended = mailbox.receive(10)
    assert ended is not None
    assert ended.kind == "end"
    assert second.is_set(), "a run whose command is gone saves and stops"
    mailbox.close()


def test_a_run_leaves_the_settings_of_its_process(tmp_path: Path) -> None:
    def settings() -> tuple[Any, ...]:
        modes = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
        return os.getcwd(), os.environ.get("DDL_TEST"), modes, torch.backends.cudnn.benchmark

    def change() -> None:
        os.chdir(tmp_path)
        os.environ["DDL_TEST"] = "1"
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.backends.cudnn.benchmark = True
        raise RuntimeError

    before = settings()
    with pytest.raises(RuntimeError), restored():
        change()
    assert settings() == before


def test_a_problem_that_other_ranks_do_not_hear_of_ends_the_job() -> None:
    ended: list[str] = []
    hears = threading.Event()

    def give_up(error: Exception) -> None:
        ended.append(str(error))
        hears.set()

    def rank(comm: Communicator) -> str | None:
        problem = UserError("wrong") if comm.rank == 1 else None
        if comm.rank == 0:
            assert hears.wait(10)
        return first_in_time(comm, problem, 0.05, give_up)

    assert threads.run(2, rank) == ["wrong (rank 1 on " + os.uname().nodename + ")"] * 2
    assert ended == ["wrong"]


def test_a_problem_that_all_ranks_hear_of_ends_no_job() -> None:
    def rank(comm: Communicator) -> str | None:
        return first_in_time(comm, UserError("wrong"), 0.2, pytest.fail)

    assert threads.run(2, rank) == ["wrong", "wrong"]
    assert threads.run(2, partial(first_in_time, problem=None, seconds=0.0, give_up=pytest.fail)) == [None, None]
    time.sleep(0.3)


def test_ranks_at_rest_have_not_stalled() -> None:
    activity, state = Activity(), JobState(1)
    watchdog = Watchdog(state, 10, 0)
    where = {"host": "h", "machine": "m", "pid": 1, "parent": 0, "rank": 0, "at": ""}

    def stall(begin: int) -> str | None:
        for now in range(begin, begin + 20):
            beat = {"event": "beat", **where, "step": activity.step, "phase": activity.phase, "turn": activity.turn}
            state.record(beat, now)
            if found := watchdog.check(now):
                return found
        return None

    state.record({"event": "started", **where}, 0)
    activity.enter("forward")
    assert stall(0)
    activity.rest()
    assert stall(100) is None


def test_the_ranks_of_a_job_are_recorded_in_the_folder_of_one_run_at_a_time(tmp_path: Path) -> None:
    record = RunRecord(Command(("mpirun",)), Guards([], 0), launcher=1)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        record.open(tmp_path / name)
        record.write_ranks([{"rank": 0, "pid": 1, "host": "h", "machine": "m"}])
        assert [path.parent.name for path in tmp_path.rglob(ranks.NAME)] == [name]
        record.close()


def test_a_loader_that_is_dropped_ends_its_processes() -> None:
    pool = Processes(1, 1)
    server = pool._server
    del pool
    gc.collect()
    assert server.returncode is not None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("bad value", "bad value"),
        (
            "the first failure: rank 1 on h:\nTraceback:\n  x\nValueError: no",
            "the first failure: rank 1 on h: ValueError: no",
        ),
        (
            "the first failure: rank 1 was killed by SIGKILL\nrank 0 on h: at step 3",
            "the first failure: rank 1 was killed by SIGKILL",
        ),
        ("", ""),
    ],
)
def test_a_message_of_a_job_in_one_line(text: str, line: str) -> None:
    assert one_line(text) == line


def test_the_job_of_a_pool_travels_as_json() -> None:
    job = PoolJob(3, "mpi", (Host("h1", 2, "me", 22), Host("h2", 1)), (("DDL_SLOTS", "0,1/4"),), "eth0", "-v")
    assert PoolJob.parse(job.dump()) == job


def test_horovod_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--warm: ranks of Horovod cannot be used again; use --engine mpi"):
        Warm(tmp_path, engine="horovod")


def test_a_pool_whose_launcher_is_missing_says_so(tmp_path: Path) -> None:
    """The message of a job that cannot start is that of its runs."""
    program = internal.argv("cli.tune.pool", PoolJob(2, "mpi").dump())
    done = subprocess.run(
        program,
        env={**os.environ, "OMPI_COMM_WORLD_SIZE": "2"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        text=True,
    )
    answer = json.loads(done.stdout)
    assert answer["code"] == 2
    assert "leave out mpirun" in answer["message"]

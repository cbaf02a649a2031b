"""The watchdog: when a job counts as stalled, and which ranks are named."""

from __future__ import annotations

from typing import Any

from cli.follow.state import JobState
from cli.follow.watchdog import Watchdog


class Job:
    """A job that starts at time 0, of `ranks` ranks that may stall for `seconds`; `now` is the time of its last check."""

    def __init__(self, ranks: int, seconds: float) -> None:
        self.now = 0
        self.state = JobState(ranks)
        self.watchdog = Watchdog(self.state, seconds, 0)


def beat(rank: int, turn: int | None, phase: str = "comm") -> dict[str, Any]:
    return {
        "event": "beat", "rank": rank, "host": f"n{rank}", "machine": f"m{rank}", "pid": 100 + rank, "parent": 50,
        "step": 6, "phase": phase, "turn": turn, "at": "wait (mpi.py:9)",
    }  # fmt: skip


def watch(until: float, job: Job, *silent: int, turn: int | None = None, phase: str = "comm") -> str | None:
    """Return the stall that is reported by the time `until`, while all ranks but the silent ones beat each second."""
    for rank in (0, 1):
        job.state.record({**beat(rank, 0), "event": "started"}, job.now)
    while job.now < until:
        job.now += 1
        for rank in {0, 1} - {*silent}:
            job.state.record(beat(rank, job.now if turn is None else turn, phase), job.now)
        stall = job.watchdog.check(job.now)
        if stall:
            return f"{job.now}: {stall}"
    return None


def test_a_job_that_makes_progress_is_no_stall() -> None:
    assert watch(1000, Job(2, 10)) is None


def test_a_silent_rank_is_named() -> None:
    job = Job(2, 10)
    assert watch(5, job) is None
    stall = watch(100, job, 1)
    assert stall is not None
    assert stall.splitlines() == [
        "16: rank 1 sent no heartbeat for 10 seconds (--stall-timeout)",
        "rank 1 on n1: last at step 7, comm: wait (mpi.py:9)",
        "rank 0 on n0: at step 7, comm: wait (mpi.py:9)",
    ]


def test_ranks_that_become_silent_one_after_the_other_are_named_together() -> None:
    """Horovod blocks the interpreter of a rank that waits for a stopped one, so its last heartbeat may be later."""
    job = Job(2, 10)
    assert watch(5, job, 0) is None  # the last heartbeat of rank 0 came at 0, that of rank 1 at 5
    stall = watch(100, job, 0, 1)
    assert stall is not None
    assert stall.startswith("16: ranks 0, 1 sent no heartbeat for 10 seconds")


def test_ranks_without_progress_are_a_stall_except_in_unlimited_phases() -> None:
    job = Job(2, 10)
    assert watch(5, job) is None
    assert watch(100, job, turn=5, phase="checkpoint") is None
    stall = watch(200, job, turn=6)
    assert stall is not None
    assert stall.startswith("112: no rank made progress for 10 seconds")


def test_ranks_that_never_start_are_named_after_a_minute_at_least() -> None:
    stall = watch(100, Job(3, 10))
    assert stall is not None
    assert stall.startswith("61: rank 2 did not start within 60 seconds")


def test_ranks_that_wait_too_long_for_their_engine_are_named_with_their_line() -> None:
    job = Job(2, 10)
    job.state.record({**beat(0, 0), "event": "started"}, 1)
    for now in range(1, 62):
        for rank in (0, 1):
            job.state.record({**beat(rank, None), "step": None, "at": "Init (mpi.py:1)"}, now)
        stall = job.watchdog.check(now)
    assert stall == (
        "rank 1 did not start within 60 seconds\nrank 0 on n0: at Init (mpi.py:1)\nrank 1 on n1: at Init (mpi.py:1)"
    )


def test_a_watchdog_that_was_stopped_itself_reports_no_stall() -> None:
    job = Job(2, 10)
    watch(5, job)
    job.now = 500
    assert job.watchdog.check(job.now) is None
    assert watch(600, job) is None


def test_a_timeout_of_0_disables_the_watchdog() -> None:
    job = Job(2, 0)
    watch(5, job)
    assert watch(5000, job, 0, 1) is None

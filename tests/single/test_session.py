"""When a session restarts a job, with outcomes given in place of a launcher."""

from __future__ import annotations

from typing import Any

import pytest

from cli.follow import session
from cli.follow.follower import Result
from cli.follow.restarts import Restarts
from cli.follow.session import Session
from cli.follow.supervisor import Limits
from cli.hosts.hostfile import Host
from cli.launch.job import Command
from cli.launch.start import Start
from cli.launch.target import Target
from cli.remote.reach import Reach

START = Start(Command(("mpirun",)), Target(("program",)), (), 4)
OK, FAILED, REFUSED = (Result(code, (), stop_requested=False) for code in (0, 1, 2))
STOPPED = Result(1, (), stop_requested=True)


@pytest.mark.parametrize(
    ("results", "most", "code", "starts"),
    [
        ([OK], 2, 0, 1),
        ([FAILED, OK], 2, 0, 2),
        ([FAILED, FAILED, FAILED, OK], 2, 1, 3),
        ([FAILED, OK], 0, 1, 1),
        ([REFUSED, OK], 2, 2, 1),
        ([STOPPED, OK], 2, 1, 1),
        ([FAILED, STOPPED, OK], 2, 1, 2),
    ],
    ids=["success", "second try", "no more restarts", "no restarts", "bad input", "stopped", "stopped later"],
)
def test_only_a_failure_that_nobody_asked_for_is_restarted(
    results: list[Result], most: int, code: int, starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed: list[Limits] = []

    def follow(command: Command, world_size: int, *, limits: Limits, **_: Any) -> Result:
        followed.append(limits)
        return results[len(followed) - 1]

    def prepare(hosts: tuple[Host, ...], ranks: int, resume: str | None) -> Start:
        assert (hosts, ranks, resume) == ((), 4, None)
        return START

    monkeypatch.setattr(session, "follow", follow)
    assert Session(prepare, Reach(), Limits(timeout=60), Restarts(most)).run(START, None) == code
    assert len(followed) == starts
    spent = [limits.spent for limits in followed]
    assert spent == sorted(spent), "the timeout is for all starts together"

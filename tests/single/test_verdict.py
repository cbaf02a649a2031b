"""How a job ended, by table; and what signals to the command mean."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

import pytest

from cli.follow.blame import lost
from cli.follow.exits import EarlyExit, EarlyExits
from cli.follow.state import JobState
from cli.follow.stop import StopRequests
from cli.follow.verdict import Evidence, Intervention, LauncherEnd, verdict

INT, TERM, HUP, USR1 = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1


def event(kind: str, rank: int, time: float = 100.0, **fields: Any) -> dict[str, Any]:
    where = {"host": f"n{rank}", "machine": f"m{rank}", "pid": 1000 + rank, "time": time}
    return {"event": kind, "rank": rank, **where, **fields}


def failed(rank: int, message: str, time: float = 100.0, code: int = 1, lost: int | None = None) -> dict[str, Any]:
    trace = "" if code == 2 else f"Traceback of {message}"
    return event("failed", rank, time, message=message, traceback=trace, exit_code=code, lost=lost)


def done(rank: int, code: int = 0) -> dict[str, Any]:
    return event("done", rank, exit_code=code)


def killed(rank: int, number: int) -> str:
    return f"prterun noticed that process rank {rank} with PID 1 on node n{rank} exited on signal {number} (Killed)."


def srun(rank: int, word: str) -> str:
    return f"srun: error: n{rank}: task {rank}: {word}\n"


ENDED = (done(0), done(1))
CASES: list[tuple[str, Sequence[dict[str, Any]], dict[str, Any], int, str]] = [
    ("all done", ENDED, {}, 0, ""),
    ("all stopped", (done(0, 75), done(1, 75)), {}, 75, ""),
    ("stopped by a signal, as asked", (done(0, 75), done(1, 75)), {"signals": [TERM]}, 75, ""),
    ("done, and the launcher fails", ENDED, {"code": 1}, 0, ""),
    ("0 of the launcher, a rank missing", (done(0),), {}, 1, "mpirun ended with code 0, and rank 1 did not report"),
    ("codes that differ", (done(0), done(1, 3)), {"code": 3}, 1, "mpirun ended with code 3"),
    ("no event", (), {"code": 213}, 1, "mpirun ended with code 213, and ranks 0, 1 did not report"),
    ("refused", (event("refused", 0, message="no", exit_code=2), failed(1, "no", code=2)), {}, 2, "no"),
    ("bad input of a rank", (failed(1, "no such file", code=2),), {}, 2, "no such file (rank 1 on n1)"),
    ("an exception", (failed(1, "ValueError: x"),), {"code": 1}, 1, "the first failure: rank 1 on n1:\nTraceback"),
    ("the first of two", (failed(1, "B: 2", 7.0), failed(0, "A: 1", 5.0)), {}, 1, "the first failure: rank 0 on n0"),
    (
        "an exception, and what srun killed then",
        (failed(0, "ValueError: x"),),
        {"launcher": "srun", "code": 1, "words": srun(1, "Terminated") + srun(0, "Exited with exit code 1")},
        1,
        "the first failure: rank 0 on n0:\nTraceback of ValueError",
    ),
    (
        "an exception, and what mpirun killed then",
        (failed(0, "ValueError: x"),),
        {"code": 1, "words": killed(1, 9)},
        1,
        "the first failure: rank 0 on n0:\nTraceback of ValueError",
    ),
    (
        "killed, and a peer that Horovod informs",
        (failed(0, "HorovodInternalError: Connection closed by peer"),),
        {"code": 1, "words": killed(1, 9)},
        1,
        "the first failure: rank 1 on n1 was killed by signal 9 (SIGKILL)",
    ),
    (
        "killed, and a peer of raw MPI",
        (failed(0, "Exception: MPI_ERR_PROC_FAILED: a peer is gone"),),
        {"code": 1, "words": srun(1, "Killed"), "launcher": "srun"},
        1,
        "the first failure: rank 1 on n1 was killed by signal 9 (SIGKILL)",
    ),
    (
        "a crash, which launchers do not cause",
        (failed(0, "ConnectionResetError: [Errno 104]"),),
        {"code": 139, "words": srun(1, "Segmentation fault"), "launcher": "srun"},
        1,
        "the first failure: rank 1 on n1 was killed by signal 11 (SIGSEGV): a crash in native code",
    ),
    (
        "killed alone",
        (),
        {"code": 137, "words": killed(1, 9)},
        1,
        "the first failure: rank 1 on n1 was killed by signal 9",
    ),
    (
        "a rank that others miss",
        (failed(0, "rank 1 is lost", lost=1),),
        {"code": 1},
        1,
        "the first failure: rank 1 is lost",
    ),
    ("a failure while it was told to stop", (failed(0, "OSError: full"),), {"signals": [TERM]}, 1, "the first failure"),
    (
        "killed by the command",
        (),
        {"signals": [INT], "code": 137, "words": killed(1, 9)},
        130,
        "ended by SIGINT",
    ),
    ("Ctrl-C in a script", (failed(0, "KeyboardInterrupt: "),), {"signals": [INT]}, 130, "ended by SIGINT"),
    ("the last signal counts", (), {"signals": [USR1, TERM]}, 143, "ended by SIGTERM"),
    ("too long", (), {"timeout": 5.0, "code": 143}, 124, "ended after --timeout 5 seconds"),
    ("too long, by then all done", ENDED, {"timeout": 5.0}, 0, ""),
    ("too long, and killed for it", (), {"timeout": 5.0, "words": killed(1, 9)}, 124, "ended after --timeout"),
    ("stuck", (failed(0, "X: y"),), {"stall": "rank 1 sent no heartbeat"}, 1, "rank 1 sent no heartbeat"),
    ("elastic, enough", (done(0),), {"fewest": 1}, 0, ""),
    ("elastic, too few", (done(0, 1),), {"fewest": 1, "code": 1}, 1, "mpirun ended with code 1"),
]


def evidence(
    reported: Sequence[dict[str, Any]],
    *,
    launcher: str = "mpirun",
    code: int = 0,
    words: str = "",
    gone: EarlyExit | None = None,
    fewest: int | None = None,
    **intervention: Any,
) -> Evidence:
    state = JobState(2)
    for rank in (0, 1):
        state.record(event("started", rank), 1)
    for one in reported:
        state.record(one, 2)
    end = LauncherEnd(launcher, code, words)
    return Evidence(state, end, reported, gone, Intervention(**intervention), fewest)


@pytest.mark.parametrize(("reported", "more", "code", "text"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_the_verdict(reported: Sequence[dict[str, Any]], more: dict[str, Any], code: int, text: str) -> None:
    found = verdict(evidence(reported, **more))
    assert (found.code, found.text[: len(text)]) == (code, text)
    assert bool(found.text) == bool(text)


@pytest.mark.parametrize(
    ("pid", "wall", "text"),
    [
        (
            1001,
            99.0,
            "the first failure: rank 1 on n1 ended without reporting an error\nrank 1 on n1: last at starting",
        ),
        (1001, 101.0, "the first failure: rank 0 on n0:\nTraceback of ValueError: x"),
        (0, 99.0, "the first failure: the connection to n1 is lost"),
        (77, 99.0, "the first failure: the launcher's daemon ended on n1"),
    ],
    ids=["rank first", "exception first", "host", "daemon"],
)
def test_of_a_process_that_is_gone_and_an_exception_the_first_is_the_cause(pid: int, wall: float, text: str) -> None:
    found = evidence([failed(0, "ValueError: x", 100.0)], code=1)
    gone = EarlyExit(pid, 2, [found.state.ranks[1]], wall)
    assert verdict(evidence([failed(0, "ValueError: x", 100.0)], code=1, gone=gone)).text.startswith(text)


def test_ranks_of_hosts_with_one_hostname_are_told_apart() -> None:
    state = JobState(3)
    exits = EarlyExits(state)
    for rank, machine in enumerate("abc"):
        state.record({**event("started", rank), "host": "node", "machine": machine}, 1)
    state.name_host("b", "10.0.0.2")
    state.name_host("c", "10.0.0.3")
    assert [str(state.ranks[rank]) for rank in range(3)] == [
        "rank 0 on node", "rank 1 on 10.0.0.2", "rank 2 on 10.0.0.3",
    ]  # fmt: skip
    exits.process_ended("b", 1000, 2)
    assert exits.first(2) is None, "a process of the same number on another host"
    exits.process_ended("b", 1001, 2)
    first = exits.first(2)
    assert first is not None
    assert first.rank is state.ranks[1]


@pytest.mark.parametrize(
    ("launcher", "text", "hosts"),
    [
        ("srun", "srun: error: Node failure on n2\nsrun: error: n2: task 1: Killed", ["n2"]),
        ("srun", "Connection to n2 closed by remote host.\n", []),
        ("mpirun", "Connection to n2 closed by remote host.\n", ["n2"]),
        ("mpirun", "lost communication with a remote daemon\n  Remote daemon: [x@0,1] on node n2\n", ["n2"]),
        ("mpirun", "srun: error: Node failure on n2", []),
    ],
)
def test_only_messages_of_the_launcher_in_use_report_lost_hosts(launcher: str, text: str, hosts: list[str]) -> None:
    assert lost(text, launcher) == hosts


@pytest.mark.parametrize(
    ("signals", "meanings"),
    [
        ([(INT, 0)], ["ask"]),
        ([(INT, 0), (INT, 5)], ["ask", "end"]),
        ([(INT, 0), (INT, 0.1), (INT, 0.2)], ["ask", "nothing", "nothing"]),
        ([(INT, 0), (INT, 0.1), (INT, 1)], ["ask", "nothing", "end"]),
        ([(TERM, 0), (INT, 0.5)], ["ask", "end"]),
        ([(TERM, 0), (TERM, 0.5), (TERM, 9)], ["ask", "nothing", "end"]),
        ([(HUP, 0), (HUP, 9)], ["ask", "end"]),
        ([(HUP, 0), (TERM, 0)], ["ask", "nothing"]),
        ([(USR1, 0), (USR1, 9), (USR1, 99)], ["ask", "nothing", "nothing"]),
        ([(USR1, 0), (TERM, 60), (TERM, 60.5), (TERM, 62)], ["ask", "nothing", "nothing", "end"]),
        ([(INT, 0), (TERM, 5)], ["ask", "nothing"]),
    ],
    ids=str,
)
def test_what_signals_mean(signals: list[tuple[int, float]], meanings: list[str]) -> None:
    requests = StopRequests()
    assert [requests.interpret(number, now) for number, now in signals] == meanings
    assert list(requests.first) == list(dict.fromkeys(number for number, _ in signals))

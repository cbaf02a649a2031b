"""Following a job to its end, with fake launchers: shells that print what ranks and launchers print."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.follow import display, follower, supervisor
from cli.follow.follower import UNLIMITED, Result, follow
from cli.follow.stream import TAIL, ErrorStream
from cli.follow.supervisor import Limits
from cli.launch.job import Command
from hvd_train.rank import events

ROOT = Path(__file__).parents[2]
Capture = pytest.CaptureFixture[str]


def event(kind: str, rank: int = 0, pid: int = 1, **fields: Any) -> bytes:
    """An event of a rank, as it arrives."""
    where = {"host": socket.gethostname(), "machine": events.machine(), "pid": pid, "time": time.time()}
    return events._encode({"event": kind, **where, "rank": rank, **fields})


def started(rank: int = 0, **fields: Any) -> bytes:
    return event("started", rank, pid=rank + 2**30, **fields)


def done(rank: int = 0, code: int = 0) -> bytes:
    return event("done", rank, pid=rank + 2**30, exit_code=code)


def failed(rank: int, message: str, trace: str = "", code: int = 1, **fields: Any) -> bytes:
    return event("failed", rank, pid=rank + 2**30, message=message, traceback=trace, exit_code=code, **fields)


class Launcher:
    """A shell script in `folder` that prints bytes given as files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lines = folder, list[str]()

    def say(self, data: bytes, descriptor: int = 2) -> Launcher:
        path = self.folder / f"part-{len(self.lines)}"
        path.write_bytes(data)
        return self.do(f"cat {shlex.quote(str(path))} >&{descriptor}")

    def do(self, line: str) -> Launcher:
        self.lines.append(line)
        return self

    def run(
        self, ranks: int = 1, *, tags_output: bool = False, prefix: tuple[str, ...] = (), limits: Limits = UNLIMITED
    ) -> Result:
        """Follow the launcher to its end."""
        program = self.folder / "mpirun"
        program.write_text("#!/bin/sh\n" + "\n".join(self.lines) + "\n")
        program.chmod(0o755)
        return follow(Command((str(program),), tags_output=tags_output, prefix=prefix), ranks, limits=limits)


@pytest.fixture
def launcher(tmp_path: Path) -> Launcher:
    return Launcher(tmp_path)


def test_ten_megabytes_without_a_line_break_and_an_event_after_them(launcher: Launcher, capfd: Capture) -> None:
    launcher.say(started()).do("head -c 10000000 /dev/zero | tr '\\0' x >&2").say(done())
    assert launcher.run().code == 0
    assert capfd.readouterr().err == "x" * 10_000_000


def test_the_kept_end_of_stderr_is_bounded() -> None:
    errors = ErrorStream()
    for _ in range(8):
        errors.feed(b"x" * 100_000)
    assert len(errors.end()) == TAIL
    assert errors.end(10) == "x" * 10


def test_a_rank_that_ends_counts_as_dead_only_after_its_output_is_read(
    launcher: Launcher, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the process is seen at once. Its output is read later: here after more than the grace period."""
    monkeypatch.setattr(supervisor, "GRACE", 0.1)
    monkeypatch.setattr(follower, "BEAT_SECONDS", 0.05)
    rank = launcher.folder / "rank.py"
    rank.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from hvd_train.rank import events; import os\n"
        "beat = dict(rank=0, parent=os.getppid(), step=0, phase='comm', turn=1, at='here')\n"
        "events.emit(2, 'started', rank=0); events.emit(2, 'beat', **beat)\n"
    )
    launcher.do(f"{sys.executable} {rank}")
    launcher.do("for i in 1 2 3 4 5 6 7 8 9; do head -c 200000 /dev/zero | tr '\\0' '\\n' >&2; sleep 0.05; done").say(
        done()
    )
    code = launcher.run().code
    said = capfd.readouterr().err
    assert code == 0, said[:500]
    assert len(said) == 1_800_000


@pytest.mark.parametrize("byte", [b"\x1e", b"\x1f", b"\x1e\x1e", b"\x1f\x1e", b"\x1e{", b"\x1e0"])
def test_control_characters_in_the_text_of_a_rank_stay_text(byte: bytes, launcher: Launcher, capfd: Capture) -> None:
    launcher.say(started() + b"before " + byte).say(b" after\n" + done()).say(byte)
    assert launcher.run().code == 0
    assert capfd.readouterr().err.encode() == b"before " + byte + b" after\n" + byte


@pytest.mark.parametrize("at", [20, 60, 200])
def test_an_event_with_the_text_of_another_rank_inside_is_found(at: int, launcher: Launcher, capfd: Capture) -> None:
    whole = failed(1, "ValueError: no", "Traceback (most recent call last):\n  mine.py\nValueError: no\n")
    launcher.say(started(0) + started(1) + whole[:at] + b"epoch 3 of rank 0\n").say(whole[at:]).do("exit 1")
    code = launcher.run(2).code
    said = capfd.readouterr().err
    assert code == 1
    assert said.endswith("mine.py\nValueError: no\n")
    assert f"ddl: the first failure: rank 1 on {socket.gethostname()}:\nTraceback" in said


def test_output_after_the_end_is_shown_and_a_process_that_stays_is_not_awaited(
    launcher: Launcher, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher.say(started() + done()).do("(sleep 0.1; echo late; exec sleep 30 >/dev/null 2>&1) &").do(
        "(exec sleep 20) & echo $! >stays"
    )
    monkeypatch.chdir(launcher.folder)
    began = time.monotonic()
    try:
        assert launcher.run().code == 0
    finally:
        for process in _session_of(launcher):
            os.kill(process, signal.SIGKILL)
    assert capfd.readouterr().out == "late\n"
    assert time.monotonic() - began < 15


def _session_of(launcher: Launcher) -> list[int]:
    """Return the processes that the launcher left, by their working directory."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cwd").resolve() == launcher.folder and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def test_a_prefix_runs_the_launcher_which_is_still_named(launcher: Launcher, capfd: Capture) -> None:
    launcher.say(started()).do("echo $FROM_PREFIX").do("exit 7").run(prefix=("env", "FROM_PREFIX=here"))
    out, err = capfd.readouterr()
    assert out == "here\n"
    assert err.startswith("ddl: mpirun ended with code 7, and rank 0 did not report the end")


def test_a_launcher_that_ends_with_0_and_ranks_missing_has_failed(launcher: Launcher, capfd: Capture) -> None:
    assert launcher.say(started(0) + started(1) + done(0)).run(2).code == 1
    assert capfd.readouterr().err.startswith(
        "ddl: mpirun ended with code 0, and rank 1 did not report the end of the run"
    )


def test_the_stderr_of_a_launcher_that_starts_no_rank_is_shown(launcher: Launcher, capfd: Capture) -> None:
    assert launcher.say(b"mpirun: no such slot\n").do("exit 213").run().code == 1
    assert capfd.readouterr().err.splitlines()[:2] == [
        "mpirun: no such slot",
        "ddl: mpirun ended with code 213, and rank 0 did not report the end of the run",
    ]


@pytest.mark.parametrize("limits", [Limits(timeout=1), Limits(timeout=60, spent=59.5)], ids=["first", "restarted"])
def test_a_time_limit_ends_the_job(limits: Limits, launcher: Launcher, capfd: Capture) -> None:
    began = time.monotonic()
    assert launcher.say(started()).do("exec sleep 60").run(limits=limits).code == 124
    assert time.monotonic() - began < 30
    assert capfd.readouterr().err == f"ddl: ended after --timeout {limits.timeout:g} seconds\n"


def test_a_stall_ends_the_job_and_is_its_cause(launcher: Launcher, capfd: Capture) -> None:
    """The rank sends one heartbeat, and the launcher never ends by itself."""
    beat = {"pid": 2**30, "parent": 1, "step": 6, "phase": "comm", "turn": 1, "at": "wait (mpi.py:9)"}
    launcher.say(started() + event("beat", **beat)).do("exec sleep 60")
    assert launcher.run(limits=Limits(stall_timeout=2)).code == 1
    assert capfd.readouterr().err.splitlines() == [
        "ddl: rank 0 sent no heartbeat for 2 seconds (--stall-timeout)",
        f"rank 0 on {socket.gethostname()}: last at step 7, comm: wait (mpi.py:9)",
    ]


@contextlib.contextmanager
def stdout_is(descriptor: int) -> Iterator[None]:
    kept = os.dup(1)
    os.dup2(descriptor, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def test_a_full_stdout_costs_one_warning(launcher: Launcher, capfd: Capture) -> None:
    launcher.say(started()).do("for i in 1 2 3 4 5 6; do echo line $i; sleep 0.01; done").say(done())
    full = os.open("/dev/full", os.O_WRONLY)
    with stdout_is(full):
        code = launcher.run().code
    os.close(full)
    assert code == 0
    assert capfd.readouterr().err == (
        "ddl: warning: cannot write to stdout (No space left on device); the run continues, its output is not shown\n"
    )


def test_a_stdout_without_a_reader_costs_one_warning(launcher: Launcher, capfd: Capture) -> None:
    launcher.say(started()).do("for i in 1 2 3 4 5 6; do echo line $i; sleep 0.01; done").say(done(code=75))
    reader, writer = os.pipe()
    os.close(reader)
    with stdout_is(writer):
        code = launcher.run().code
    os.close(writer)
    assert code == 75
    assert capfd.readouterr().err == (
        "ddl: warning: cannot write to stdout (Broken pipe); the run continues, its output is not shown\n"
    )


def test_a_slow_reader_gets_all_output_and_blocks_only_the_ranks(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Measured(display.BackgroundWriter):
        def write(self, data: bytes) -> None:
            super().write(data)
            sizes.append(self._size)

    monkeypatch.setattr(display, "BackgroundWriter", Measured)
    launcher.do("head -c 5000000 /dev/zero &").say(started()).do("wait").say(done())
    reader, writer = os.pipe()
    got: list[int] = []

    def read() -> None:
        time.sleep(0.5)
        while data := os.read(reader, 2**20):
            got.append(len(data))

    thread = threading.Thread(target=read)
    thread.start()
    with stdout_is(writer):
        code = launcher.run().code
    os.close(writer)
    thread.join()
    os.close(reader)
    assert code == 0
    assert sum(got) == 5_000_000
    assert max(sizes) < 1_200_000


def test_harmless_lines_are_left_out(launcher: Launcher, capfd: Capture) -> None:
    line = b"[n1:77] plm:ssh: Warning: setpgid(78,78) failed in parent with errno=Permission denied(13)\n"
    assert launcher.say(started() + b"a\n" + line + b"b\n" + done()).run().code == 0
    assert capfd.readouterr().err == "a\nb\n"


def test_the_tags_of_horovodrun_are_removed_however_they_are_cut(launcher: Launcher, capfd: Capture) -> None:
    launcher.say(b"[1,0]<stderr>:" + started() + b"[1,0]<stderr>:").say(b"[1] text\n[1,").say(b"0]<std")
    launcher.say(b"err>: more\n[1,0]<stderr>:" + done())
    assert launcher.run(tags_output=True).code == 0
    assert capfd.readouterr().err == "[1] text\nmore\n"


@pytest.fixture(autouse=True)
def _no_handler_is_left() -> Iterator[None]:
    """Start with default handlers, whatever the shell ignores, and check that the command restores them."""
    mine = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in mine.items()}
    yield
    assert {number: signal.signal(number, before[number]) for number in mine} == mine


def test_a_signal_that_was_ignored_from_the_start_stays_so(launcher: Launcher) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    launcher.say(started()).do("kill -HUP $PPID; sleep 0.1").say(done())
    assert launcher.run().code == 0
    assert signal.signal(signal.SIGHUP, signal.SIG_DFL) is signal.SIG_IGN


@pytest.mark.parametrize(("name", "code"), [("INT", 130), ("TERM", 143), ("HUP", 129)])
def test_a_signal_before_any_rank_has_started_ends_the_launcher(
    name: str, code: int, launcher: Launcher, capfd: Capture
) -> None:
    launcher.do(f"kill -{name} $PPID").do("sleep 30")
    assert launcher.run().code == code
    assert f"ddl: ended by SIG{name}" in capfd.readouterr().err


RANK = """\
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what is in its background ignore it
sys.path.insert(0, {root!r})
from hvd_train.rank import events
{handles}
events.emit(2, "started", rank=0{stop})
events.emit(2, "folder", rank=0, path={folder!r})
time.sleep(30)
"""
RECEIVED = "until [ -e command.txt ]; do kill -0 $rank || exit 99; sleep 0.02; done"
"""The command writes this file when it has received the events of the rank. A rank that dies first ends the launcher."""


def with_rank(launcher: Launcher, handles: str, stop: str = f", stop={int(signal.SIGUSR1)}") -> Launcher:
    """Add one real process as the rank. The command knows it before the next line of the launcher runs."""
    text = RANK.format(root=str(ROOT), handles=handles, stop=stop, folder=str(launcher.folder))
    (launcher.folder / "rank.py").write_text(text)
    return launcher.do(f"cd {launcher.folder}; {sys.executable} rank.py & rank=$!").do(RECEIVED)


SAVES = """
def save(number, frame):
    events.emit(2, "done", rank=0, exit_code=75)
    os._exit(75)
signal.signal(signal.SIGUSR1, save)
"""


@pytest.mark.parametrize("signals", ["INT", "TERM", "HUP", "USR1", "TERM TERM USR1", "INT INT"])
def test_the_first_signals_ask_ranks_to_save(signals: str, launcher: Launcher, capfd: Capture) -> None:
    """This holds for bursts too, which wrappers and SLURM send."""
    with_rank(launcher, SAVES).do("; ".join(f"kill -{name} $PPID" for name in signals.split())).do("wait $rank")
    code = launcher.run().code
    assert code == 75, capfd.readouterr().err


def test_a_second_ctrl_c_ends_ranks_that_do_not_stop(launcher: Launcher, capfd: Capture) -> None:
    with_rank(launcher, "signal.signal(signal.SIGUSR1, lambda *_: None)")
    launcher.do("kill -INT $PPID; sleep 0.6; kill -INT $PPID; wait $rank")
    assert launcher.run().code == 130
    said = capfd.readouterr().err
    assert "ddl: asked all ranks to save and stop; press Ctrl-C again to end them at once\n" in said
    assert said.endswith("ddl: ended by SIGINT\n")


def test_a_signal_ends_the_wait_for_a_reader_that_reads_nothing(launcher: Launcher, capfd: Capture) -> None:
    """The command waits for the readers of its output, even after a first Ctrl-C has asked ranks to stop."""
    with_rank(launcher, SAVES).do("kill -INT $PPID; wait $rank").do("head -c 200000 /dev/zero; touch printed")
    reader, writer = os.pipe()
    left = threading.Event()

    def insist() -> None:
        while not left.wait(1):
            if (launcher.folder / "printed").exists():
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, lambda *_: None)  # one may come after the command has gone
    thread = threading.Thread(target=insist)
    thread.start()
    with stdout_is(writer):
        code = launcher.run().code
        os.close(reader)
        for sink in [one for one in threading.enumerate() if one.name == "sink-1"]:
            sink.join(10)  # it would write the rest to the stdout that is restored
    left.set()
    thread.join()
    signal.signal(signal.SIGINT, before)
    os.close(writer)
    assert code == 75, capfd.readouterr().err


CLEANS_UP = """
import atexit
atexit.register(lambda: open("cleaned", "w"))
"""


@pytest.mark.parametrize(("name", "code", "cleans"), [("INT", 130, True), ("TERM", 143, False), ("USR1", 138, False)])
def test_a_script_gets_the_signal_itself(
    name: str, code: int, cleans: bool, launcher: Launcher, capfd: Capture
) -> None:
    """SIGINT raises KeyboardInterrupt in it, as without ddl."""
    with_rank(launcher, CLEANS_UP, stop="").do(f"kill -{name} $PPID; wait $rank; exit 1")
    assert launcher.run().code == code
    assert capfd.readouterr().err.endswith(f"ddl: ended by SIG{name}\n")
    assert (launcher.folder / "cleaned").exists() == cleans

"""The command that follows its ranks, with fake launchers: shells that print what ranks and launchers print."""

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

from cli import execute, stream
from cli.execute import Execution
from cli.launchers.base import Command
from hvd_train import events

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
        self.folder, self.lines = folder, ["set -m"]

    def say(self, data: bytes, descriptor: int = 2) -> Launcher:
        path = self.folder / f"part-{len(self.lines)}"
        path.write_bytes(data)
        return self.do(f"cat {shlex.quote(str(path))} >&{descriptor}")

    def do(self, line: str) -> Launcher:
        self.lines.append(line)
        return self

    def run(self, ranks: int = 1, name: str = "mpirun", **options: Any) -> tuple[int, Execution]:
        """The exit code of the command that follows it."""
        program = self.folder / name
        program.write_text("#!/bin/sh\n" + "\n".join(self.lines[1:]) + "\n")
        program.chmod(0o755)
        execution = Execution(Command((str(program),), tags_output=options.pop("tags_output", False)), ranks, **options)
        return execution.run(), execution


@pytest.fixture
def launcher(tmp_path: Path) -> Launcher:
    return Launcher(tmp_path)


def test_ten_megabytes_without_a_line_break_and_the_word_after_them(launcher: Launcher, capfd: Capture) -> None:
    launcher.say(started()).do("head -c 10000000 /dev/zero | tr '\\0' x >&2").say(done())
    code, execution = launcher.run()
    assert code == 0
    assert capfd.readouterr().err == "x" * 10_000_000
    assert len(execution._errors.tail) == 2**18


def test_a_loud_rank_that_ends_is_not_declared_dead_while_its_words_are_on_the_way(
    launcher: Launcher, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the process is seen at once, what it said before is read later: here no sooner than after the grace."""
    monkeypatch.setattr(execute, "GRACE", 0.1)
    monkeypatch.setattr(execute, "BEAT_SECONDS", 0.05)
    rank = launcher.folder / "rank.py"
    rank.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from hvd_train import events; import os\n"
        "beat = dict(rank=0, parent=os.getppid(), step=0, phase='comm', turn=1, at='here')\n"
        "events.emit(2, 'started', rank=0); events.emit(2, 'beat', **beat)\n"
    )
    launcher.do(f"{sys.executable} {rank}")
    launcher.do("for i in 1 2 3 4 5 6 7 8 9; do head -c 200000 /dev/zero | tr '\\0' '\\n' >&2; sleep 0.05; done").say(
        done()
    )
    code, _ = launcher.run()
    said = capfd.readouterr().err
    assert code == 0, said[:500]
    assert len(said) == 1_800_000


@pytest.mark.parametrize("byte", [b"\x1e", b"\x1f", b"\x1e\x1e", b"\x1f\x1e", b"\x1e{", b"\x1e0"])
def test_control_characters_in_the_text_of_a_rank_stay_text(byte: bytes, launcher: Launcher, capfd: Capture) -> None:
    launcher.say(started() + b"before " + byte).say(b" after\n" + done()).say(byte)
    assert launcher.run()[0] == 0
    assert capfd.readouterr().err.encode() == b"before " + byte + b" after\n" + byte


@pytest.mark.parametrize("at", [20, 60, 200])
def test_an_event_with_the_text_of_another_rank_inside_is_found(at: int, launcher: Launcher, capfd: Capture) -> None:
    whole = failed(1, "ValueError: no", "Traceback (most recent call last):\n  mine.py\nValueError: no\n")
    launcher.say(started(0) + started(1) + whole[:at] + b"epoch 3 of rank 0\n").say(whole[at:]).do("exit 1")
    code, _ = launcher.run(2)
    said = capfd.readouterr().err
    assert code == 1
    assert said.endswith("mine.py\nValueError: no\n")
    assert f"ddl: the first failure: rank 1 on {socket.gethostname()}:\nTraceback" in said


def test_output_after_the_end_is_shown_and_a_process_that_stays_is_not_waited_for(
    launcher: Launcher, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher.say(started() + done()).do("(sleep 0.1; echo late; exec sleep 30 >/dev/null 2>&1) &").do(
        "(exec sleep 20) & echo $! >stays"
    )
    monkeypatch.chdir(launcher.folder)
    began = time.monotonic()
    try:
        assert launcher.run()[0] == 0
    finally:
        for process in _session_of(launcher):
            os.kill(process, signal.SIGKILL)
    assert capfd.readouterr().out == "late\n"
    assert time.monotonic() - began < 15


def _session_of(launcher: Launcher) -> list[int]:
    """What the launcher has left, by the folder that it works in."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cwd").resolve() == launcher.folder and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def test_a_launcher_that_ends_with_0_and_ranks_missing_has_failed(launcher: Launcher, capfd: Capture) -> None:
    assert launcher.say(started(0) + started(1) + done(0)).run(2)[0] == 1
    assert capfd.readouterr().err.startswith(
        "ddl: mpirun ended with code 0, and rank 1 did not report the end of the run"
    )


def test_a_launcher_that_never_starts_a_rank_says_so_in_its_own_words(launcher: Launcher, capfd: Capture) -> None:
    assert launcher.say(b"mpirun: no such slot\n").do("exit 213").run()[0] == 1
    assert capfd.readouterr().err.splitlines()[:2] == [
        "mpirun: no such slot",
        "ddl: mpirun ended with code 213, and rank 0 did not report the end of the run",
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
        code, _ = launcher.run()
    os.close(full)
    assert code == 0
    assert capfd.readouterr().err == (
        "ddl: warning: nothing more is shown on stdout (No space left on device); the run goes on\n"
    )


def test_a_stdout_whose_reader_went_costs_one_warning(launcher: Launcher, capfd: Capture) -> None:
    launcher.say(started()).do("for i in 1 2 3 4 5 6; do echo line $i; sleep 0.01; done").say(done(code=75))
    reader, writer = os.pipe()
    os.close(reader)
    with stdout_is(writer):
        code, _ = launcher.run()
    os.close(writer)
    assert code == 75
    assert capfd.readouterr().err == "ddl: warning: nothing more is shown on stdout (Broken pipe); the run goes on\n"


def test_a_slow_reader_gets_all_of_it_and_holds_up_the_ranks_alone(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Measured(stream.Sink):
        def write(self, data: bytes) -> None:
            super().write(data)
            sizes.append(self._size)

    monkeypatch.setattr(execute, "Sink", Measured)
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
        code, _ = launcher.run()
    os.close(writer)
    thread.join()
    os.close(reader)
    assert code == 0
    assert sum(got) == 5_000_000
    assert max(sizes) < 1_200_000


def test_harmless_lines_are_left_out(launcher: Launcher, capfd: Capture) -> None:
    line = b"[n1:77] plm:ssh: Warning: setpgid(78,78) failed in parent with errno=Permission denied(13)\n"
    assert launcher.say(started() + b"a\n" + line + b"b\n" + done()).run()[0] == 0
    assert capfd.readouterr().err == "a\nb\n"


def test_the_tags_of_horovodrun_are_removed_however_they_are_cut(launcher: Launcher, capfd: Capture) -> None:
    launcher.say(b"[1,0]<stderr>:" + started() + b"[1,0]<stderr>:").say(b"[1] text\n[1,").say(b"0]<std")
    launcher.say(b"err>: more\n[1,0]<stderr>:" + done())
    assert launcher.run(tags_output=True)[0] == 0
    assert capfd.readouterr().err == "[1] text\nmore\n"


@pytest.fixture(autouse=True)
def _no_handler_is_left() -> Iterator[None]:
    """Signals are not ignored, as by nohup, and the command's handlers are gone after it."""
    mine = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in mine.items()}
    yield
    assert {number: signal.signal(number, before[number]) for number in mine} == mine


def test_a_signal_that_was_ignored_from_the_start_stays_so(launcher: Launcher) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    launcher.say(started()).do("kill -HUP $PPID; sleep 0.1").say(done())
    assert launcher.run()[0] == 0
    assert signal.signal(signal.SIGHUP, signal.SIG_DFL) is signal.SIG_IGN


@pytest.mark.parametrize(("name", "code"), [("INT", 130), ("TERM", 143), ("HUP", 129)])
def test_a_signal_before_any_rank_has_started_ends_the_launcher(
    name: str, code: int, launcher: Launcher, capfd: Capture
) -> None:
    launcher.do(f"kill -{name} $PPID").do("sleep 30")
    assert launcher.run()[0] == code
    assert f"ddl: ended by SIG{name}" in capfd.readouterr().err


RANK = """\
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what is in its background ignore it
sys.path.insert(0, {root!r})
from hvd_train import events
{handles}
events.emit(2, "started", rank=0{stop})
events.emit(2, "folder", rank=0, path={folder!r})
time.sleep(30)
"""
HEARD = "until [ -e command.txt ]; do sleep 0.02; done"
"""The command has written it when it has heard of the rank."""


def with_rank(launcher: Launcher, handles: str, stop: str = f", stop={int(signal.SIGUSR1)}") -> Launcher:
    """A launcher with one real process as its rank, of which the command knows before the next line."""
    text = RANK.format(root=str(ROOT), handles=handles, stop=stop, folder=str(launcher.folder))
    (launcher.folder / "rank.py").write_text(text)
    return launcher.do(f"cd {launcher.folder}; {sys.executable} rank.py & rank=$!").do(HEARD)


SAVES = """
def save(number, frame):
    events.emit(2, "done", rank=0, exit_code=75)
    os._exit(75)
signal.signal(signal.SIGUSR1, save)
"""


@pytest.mark.parametrize("signals", ["INT", "TERM", "HUP", "USR1", "TERM TERM USR1", "INT INT"])
def test_the_first_signals_ask_ranks_to_save(signals: str, launcher: Launcher, capfd: Capture) -> None:
    """Also in a burst, as wrappers and SLURM send them."""
    with_rank(launcher, SAVES).do("; ".join(f"kill -{name} $PPID" for name in signals.split())).do("wait $rank")
    code, _ = launcher.run()
    assert code == 75, capfd.readouterr().err


def test_a_second_ctrl_c_ends_ranks_that_do_not_stop(launcher: Launcher, capfd: Capture) -> None:
    with_rank(launcher, "signal.signal(signal.SIGUSR1, lambda *_: None)")
    launcher.do("kill -INT $PPID; sleep 0.6; kill -INT $PPID; wait $rank")
    assert launcher.run()[0] == 130
    said = capfd.readouterr().err
    assert "ddl: asked the ranks to save and stop; Ctrl-C once more ends them at once\n" in said
    assert said.endswith("ddl: ended by SIGINT\n")


def test_a_reader_that_reads_nothing_is_left_by_a_signal(launcher: Launcher, capfd: Capture) -> None:
    """What was printed is waited for after the end, also where Ctrl-C had asked ranks to stop before."""
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
        code, _ = launcher.run()
    left.set()
    thread.join()
    signal.signal(signal.SIGINT, before)
    os.close(reader)
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
    """SIGINT is a KeyboardInterrupt, as of a script without ddl."""
    with_rank(launcher, CLEANS_UP, stop="").do(f"kill -{name} $PPID; wait $rank; exit 1")
    assert launcher.run()[0] == code
    assert capfd.readouterr().err.endswith(f"ddl: ended by SIG{name}\n")
    assert (launcher.folder / "cleaned").exists() == cleans

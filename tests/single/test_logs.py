"""Output of a rank reaches its log and the terminal, even if the rank, the terminal or the disk fails."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hvd_train.rank import pump
from hvd_train.rank.pump import Lines, TerminalWriter

ROOT = Path(__file__).parents[2]
LONG = b"x" * (pump.LONGEST + 1)


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        ([b"one\ntwo\n"], b"[2] one\n[2] two\n"),
        ([b"o", b"ne\nt", b"wo\n"], b"[2] one\n[2] two\n"),
        ([b"\n\n"], b"[2] \n[2] \n"),
        ([b"a\r\nb\r", b"\nc\n"], b"[2] a\r\n[2] b\r\n[2] c\n"),
        ([b"\r 10%", b"\r 20%", b"\n"], b"\r[2]  10%\r[2]  20%\n"),
        ([b"10%\r20%\r", b"30%\r"], b"[2] 10%\r[2] 20%\r[2] 30%\r"),
        ([b"\xff\x00\xfe\n"], b"[2] \xff\x00\xfe\n"),
        ([b"no end"], b"[2] no end\n"),
        ([LONG, b"y\n"], b"[2] " + LONG + b"\n[2] y\n"),
        ([], b""),
    ],
)
def test_lines_of_a_rank_begin_with_its_number(pieces: list[bytes], shown: bytes) -> None:
    lines = Lines(b"[2] ")
    found = b"".join(lines.take(piece, 0.0) for piece in pieces)
    assert found + lines.rest() == shown
    assert lines.rest() == b""


def test_output_without_a_tag_is_unchanged() -> None:
    lines = Lines(b"")
    assert [lines.take(piece, 0.0) for piece in (b"no end", b"\r 10%", b"\xff")] == [b"no end", b"\r 10%", b"\xff"]
    assert not lines.has_partial
    assert lines.rest() == b""


def test_an_incomplete_line_has_the_time_of_its_beginning() -> None:
    lines = Lines(b"[0] ")
    lines.take(b"whole\nbegun", 5.0)
    lines.take(b" and more", 7.0)
    assert (lines.has_partial, lines.since) == (True, 5.0)
    assert lines.rest() == b"[0] begun and more\n"
    assert not lines.has_partial


def test_output_that_a_terminal_does_not_accept_is_omitted_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump, "STALL", 0.05)
    reader, writer = os.pipe()
    terminal = TerminalWriter(writer, paced=False)
    terminal.write(b"a" * 2**20)
    terminal.write(b"lost")
    taken = os.read(reader, 2**20)
    assert set(taken) == set(b"a")
    terminal.write(b"heard")
    assert os.read(reader, 2**20) == pump.OMITTED + b"heard"
    os.close(reader)
    terminal.write(b"to nobody")
    assert terminal.problem == "Broken pipe"


def test_bursts_of_two_ranks_do_not_mix_lines() -> None:
    """Each read is as long as that of a launcher."""
    text = b"".join(b"[0] line %d\n" % i for i in range(3000))
    reader, writer = os.pipe()
    found: list[bytes] = []

    def read() -> None:
        while data := os.read(reader, 4096):
            found.append(data)

    thread = threading.Thread(target=read)
    thread.start()
    terminal = TerminalWriter(writer, paced=True)
    terminal.write(text)
    os.close(terminal._descriptor)
    os.close(writer)
    thread.join()
    assert b"".join(found) == text


RANK = """\
import os, sys
from pathlib import Path
from hvd_train.rank.logs import Output
output = Output()
output.capture(Path(sys.argv[1]), 3, show=sys.argv[2] == "shown", tag=sys.argv[2] == "shown")
print("begun", end=" ")
{what}
"""

WHATS = {
    "os._exit": "print('last'); os._exit(5)",
    "killed": "print('last'); os.kill(os.getpid(), 9)",
    "closes": "print('last'); os.close(1); os.close(2)",
    "moves": "os.chdir('/'); print('last')",
    "a child": "os.system('echo last')",
    "raw": "os.write(2, b'last\\xff\\n')",
    "much": "print('x' * 300000); print('last')",
}


def rank(what: str, log: Path, show: str, **options: int) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", RANK.format(what=what), str(log), show]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, timeout=50, check=False, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("what", WHATS)
def test_the_last_output_of_a_rank_is_in_its_log_and_blocks_nobody(what: str, tmp_path: Path) -> None:
    done = rank(WHATS[what], tmp_path / "logs" / "rank-3.log", "shown", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    log = (tmp_path / "logs" / "rank-3.log").read_bytes()
    assert log.startswith(b"begun ")
    assert b"last" in log
    assert all(line.startswith(b"[3] ") for line in (done.stdout + done.stderr).splitlines())
    assert b"last" in done.stdout + done.stderr


SAYS = "import subprocess; subprocess.Popen(['sh', '-c', '{}', sys.argv[1] + '.said'])"
STAYS = {
    "exec": SAYS.format('echo last $$; touch "$0"; exec sleep 60'),
    "talks": SAYS.format('while echo last $$; do touch "$0"; sleep 0.05; done'),
    "fork": "import time\nif not os.fork(): print('last', os.getpid()); open(sys.argv[1] + '.said', 'w'); time.sleep(60)",
}
WAITS = "\nimport time\nwhile not os.path.exists(sys.argv[1] + '.said'): time.sleep(0.01)"


@pytest.mark.parametrize("what", STAYS)
def test_nobody_waits_for_a_child_that_outlives_its_rank(what: str, tmp_path: Path) -> None:
    done = rank(STAYS[what] + WAITS, tmp_path / "log", "shown", stdout=subprocess.PIPE)
    assert done.returncode == 0
    pid = int(done.stdout.split()[-1])
    with contextlib.suppress(ProcessLookupError) if what == "talks" else contextlib.nullcontext():
        os.kill(pid, signal.SIGKILL)  # fails if it has ended


def test_a_rank_continues_without_a_terminal_and_without_a_disk(tmp_path: Path) -> None:
    """A closed reader and a full device cause one warning each, and the other destination has all output."""
    goes_on = f"for i in range(50): print(i); import time; time.sleep(0.002)\nopen({str(tmp_path / 'end')!r}, 'w')"
    reader, writer = os.pipe()
    os.close(reader)
    done = rank(goes_on, tmp_path / "log", "shown", stdout=writer, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(b"rank 3: its output is no longer shown (Broken pipe); the rank continues") == 1
    assert [line for line in (tmp_path / "log").read_text().splitlines() if line.isdigit()][-1] == "49"
    assert (tmp_path / "end").exists()
    (tmp_path / "full").symlink_to("/dev/full")
    done = rank(goes_on, tmp_path / "full", "shown", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0
    assert (
        done.stderr.count(
            b"ddl: warning: rank 3: its log cannot be written (No space left on device); the rank continues"
        )
        == 1
    )
    assert done.stdout.endswith(b"[3] 49\n")
    done = rank("print('on')", tmp_path / "end" / "log", "hidden", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.startswith(b"ddl: warning: rank 3: no log is written to ")


def test_output_is_shown_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RANK.format(what="import time; time.sleep(600)"), str(tmp_path / "log"), "shown"]
    command[2] = command[2].replace('tag=sys.argv[2] == "shown"', "tag=False")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment["PYTHONPATH"] = str(ROOT)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, bufsize=0)
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], 50)
    process.kill()
    process.communicate()
    assert ready

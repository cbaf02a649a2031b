"""Guards over a fake ssh, which runs its command here and prints what a login shell may print."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path

import pytest

from cli.follow import guard
from cli.follow.guard import Guard, Guards
from cli.remote import ssh
from hvd_train.rank import events

ROOT = Path(__file__).parents[2]
SSH = """\
#!/bin/bash
# A login shell that runs the command, which is the last argument.
for word; do :; done
{before}
PYTHONPATH={root} sh -c "$word"
{after}
"""


class Shell:
    """The program `ssh` on PATH."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ssh"

    def is_(self, before: str = "", after: str = "") -> None:
        self.path.write_text(SSH.format(before=before, after=after, root=ROOT))
        self.path.chmod(0o755)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = Shell(tmp_path)
    found.is_()
    return found


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process to watch."""
    with subprocess.Popen(["sleep", "60"]) as found:
        yield found
        found.kill()


def receive(sent: Guard, seconds: float = 20) -> list[int]:
    """Return the processes that the next answer of the guard calls ended."""
    assert sent.process.stdout is not None
    deadline, before = time.monotonic() + seconds, sent.machine
    while time.monotonic() < deadline:
        if wait([sent.process.stdout], 0.2):
            data = os.read(sent.process.stdout.fileno(), 65536)
            ended = sent.receive(data)
            if ended or sent.machine != before or not data:
                return ended
    raise AssertionError("the guard sent nothing")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        ("echo Welcome to n2", ""),
        ("printf 'n1 12 34'", "echo 77; echo bye"),
        ("printf '\\036{\\037'", ""),
        ("read -t 1 line", ""),
        ("head -c 200000 /dev/zero | tr '\\0' x", ""),
    ],
    ids=["silent", "banner", "numbers", "control characters", "reads stdin", "long"],
)
def test_output_of_a_login_shell_is_no_answer(
    before: str, after: str, shell: Shell, process: subprocess.Popen[bytes]
) -> None:
    shell.is_(before, after)
    guards = Guards(["n2"], 0)
    (sent,) = guards.start()
    guards.watch(events.machine(), [process.pid])
    assert receive(sent) == []
    assert sent.machine == events.machine()
    process.kill()
    assert receive(sent) == [process.pid]
    guards.dismiss()


def test_a_dismissed_guard_ends_the_processes_that_it_watches(shell: Shell, process: subprocess.Popen[bytes]) -> None:
    guards = Guards(["n2"], 0)
    (sent,) = guards.start()
    guards.watch("another", [os.getpid()])
    guards.watch(events.machine(), [process.pid])
    receive(sent)
    guards.dismiss()
    assert process.wait(timeout=20) == -9


def test_a_guard_without_heartbeats_ends_the_processes_that_it_watches(
    shell: Shell, process: subprocess.Popen[bytes]
) -> None:
    guards = Guards(["n2"], 2)
    (sent,) = guards.start()
    guards.watch(events.machine(), [process.pid])
    receive(sent)
    assert process.wait(timeout=20) == -9
    guards.dismiss()


@pytest.mark.parametrize(
    ("machine", "mine", "sent_to"), [("here", True, True), ("another", True, False), ("here", False, False)]
)
def test_a_signal_reaches_only_processes_of_the_job(
    machine: str, mine: bool, sent_to: bool, shell: Shell, process: subprocess.Popen[bytes]
) -> None:
    guards = Guards(["n2"], 0)
    (sent,) = guards.start()
    where = events.machine() if machine == "here" else machine
    with subprocess.Popen(["sleep", "60"]) as other:
        guards.watch(events.machine(), [process.pid if mine else other.pid])
        receive(sent)
        assert guards.signal(where, 15, [process.pid]) == (machine == "here")
        if sent_to:
            assert process.wait(timeout=20) == -15
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.3)
        guards.dismiss()
        other.kill()


def test_a_refused_connection_is_tried_again(shell: Shell, tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    """An sshd with too many connections refuses some (MaxStartups)."""
    shell.is_(f"echo x >>{tmp_path}/calls; [ $(wc -l <{tmp_path}/calls) -lt 3 ] && exit 255")
    guards = Guards(["n2"], 0)
    (sent,) = guards.start()
    guards.watch(events.machine(), [process.pid])
    for _ in range(2):
        assert receive(sent) == []
        assert guards.restart(sent)
    assert receive(sent) == []
    assert sent.machine
    process.kill()
    assert receive(sent) == [process.pid]
    guards.dismiss()
    shell.is_("exit 255")
    guards = Guards(["n2"], 0)
    (sent,) = guards.start()
    for _ in range(guard.TRIES - 1):
        receive(sent)
        assert guards.restart(sent)
    receive(sent)
    assert not guards.restart(sent)
    guards.dismiss()


def test_few_connections_are_made_at_a_time(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "LOT", 2)
    guards = Guards([f"n{i}" for i in range(5)], 0)
    first = guards.start()
    assert [sent.name for sent in first] == ["n0", "n1"]
    assert guards.start() == []
    receive(first[0])
    assert [sent.name for sent in guards.start()] == ["n2"]
    assert guards.start() == []
    guards.dismiss()


def test_a_folder_with_its_own_cli_and_a_path_with_a_space_are_no_obstacle(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard starts in the home folder of the user, and its Python may be anywhere."""
    (tmp_path / "cli.py").write_text("raise SystemExit('not ours')")
    python = tmp_path / "my environment" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.chdir(tmp_path)
    guards = Guards(["n2"], 0)
    (sent,) = guards.start()
    receive(sent)
    assert sent.machine == events.machine()
    guards.dismiss()

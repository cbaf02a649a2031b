"""Guards over a fake ssh, which runs its command here as a login shell would: with all that such a shell may print."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import guard, ssh
from cli.guard import Guard, Guards
from hvd_train import events

ROOT = Path(__file__).parents[2]
SSH = """\
#!/bin/bash
# A login shell on the way to the command, which is the last word.
for word; do :; done
{before}
PYTHONPATH={root} sh -c "$word"
{after}
"""


class Shell:
    """What `ssh` is on PATH."""

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
    """A process to look after."""
    with subprocess.Popen(["sleep", "60"]) as found:
        yield found
        found.kill()


def hear(sent: Guard, seconds: float = 20) -> list[int]:
    """What the guard has to say next, once it says something."""
    assert sent.process.stdout is not None
    deadline, before = time.monotonic() + seconds, sent.machine
    while time.monotonic() < deadline:
        if select.select([sent.process.stdout], [], [], 0.2)[0]:
            data = os.read(sent.process.stdout.fileno(), 65536)
            ended = sent.hear(data)
            if ended or sent.machine != before or not data:
                return ended
    raise AssertionError("not a word")


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
def test_what_a_login_shell_prints_is_no_answer(
    before: str, after: str, shell: Shell, process: subprocess.Popen[bytes]
) -> None:
    shell.is_(before, after)
    guards = Guards(["n2"], 0)
    (sent,) = guards.post()
    guards.watch(events.machine(), [process.pid])
    assert hear(sent) == []
    assert sent.machine == events.machine()
    process.kill()
    assert hear(sent) == [process.pid]
    guards.dismiss()


def test_a_guard_that_is_dismissed_ends_what_it_looks_after(shell: Shell, process: subprocess.Popen[bytes]) -> None:
    guards = Guards(["n2"], 0)
    (sent,) = guards.post()
    guards.watch("another", [os.getpid()])
    guards.watch(events.machine(), [process.pid])
    hear(sent)
    guards.dismiss()
    assert process.wait(timeout=20) == -9


def test_a_guard_that_hears_nothing_ends_what_it_looks_after(shell: Shell, process: subprocess.Popen[bytes]) -> None:
    guards = Guards(["n2"], 2)
    (sent,) = guards.post()
    guards.watch(events.machine(), [process.pid])
    hear(sent)
    assert process.wait(timeout=20) == -9
    guards.dismiss()


@pytest.mark.parametrize(
    ("machine", "mine", "sent_to"), [("here", True, True), ("another", True, False), ("here", False, False)]
)
def test_a_signal_goes_to_processes_of_the_job_alone(
    machine: str, mine: bool, sent_to: bool, shell: Shell, process: subprocess.Popen[bytes]
) -> None:
    guards = Guards(["n2"], 0)
    (sent,) = guards.post()
    where = events.machine() if machine == "here" else machine
    with subprocess.Popen(["sleep", "60"]) as other:
        guards.watch(events.machine(), [process.pid if mine else other.pid])
        hear(sent)
        assert guards.signal(where, 15, [process.pid]) == (machine == "here")
        if sent_to:
            assert process.wait(timeout=20) == -15
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.3)
        guards.dismiss()
        other.kill()


def test_a_connection_that_is_refused_is_made_again(
    shell: Shell, tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    """As by an sshd with too many of them at once (MaxStartups)."""
    shell.is_(f"echo x >>{tmp_path}/calls; [ $(wc -l <{tmp_path}/calls) -lt 3 ] && exit 255")
    guards = Guards(["n2"], 0)
    (sent,) = guards.post()
    guards.watch(events.machine(), [process.pid])
    for _ in range(2):
        assert hear(sent) == []
        assert guards.again(sent)
    assert hear(sent) == []
    assert sent.machine
    process.kill()
    assert hear(sent) == [process.pid]
    guards.dismiss()
    shell.is_("exit 255")
    guards = Guards(["n2"], 0)
    (sent,) = guards.post()
    for _ in range(guard.TRIES - 1):
        hear(sent)
        assert guards.again(sent)
    hear(sent)
    assert not guards.again(sent)
    guards.dismiss()


def test_few_connections_are_made_at_a_time(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "LOT", 2)
    guards = Guards([f"n{i}" for i in range(5)], 0)
    first = guards.post()
    assert [sent.name for sent in first] == ["n0", "n1"]
    assert guards.post() == []
    hear(first[0])
    assert [sent.name for sent in guards.post()] == ["n2"]
    assert guards.post() == []
    guards.dismiss()


def test_a_folder_with_its_own_cli_and_a_path_with_a_space_are_no_obstacle(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command runs where the user's shell begins, and its Python may be anywhere."""
    (tmp_path / "cli.py").write_text("raise SystemExit('not ours')")
    python = tmp_path / "my environment" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.chdir(tmp_path)
    guards = Guards(["n2"], 0)
    (sent,) = guards.post()
    hear(sent)
    assert sent.machine == events.machine()
    guards.dismiss()

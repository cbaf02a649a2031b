"""A guard on every other host of a job: reports and ends processes.

The command starts the program `cli.follow.guard SECONDS` over ssh and writes lines to its stdin.
`watch MACHINE PID ...` names processes to watch, `signal MACHINE NUMBER PID ...` sends a signal to
some of them, and an empty line is a heartbeat. The guard answers in events
(`hvd_train.rank.events`), because a login shell may print text around them: `guard` when it starts,
and `ended` for each process that ends. When its stdin closes, or after SECONDS without a line, it
ends all processes that it watches. So ranks end even on a host that is cut off from the launcher.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import psutil

from cli.follow import reap
from cli.remote import ssh
from hvd_train.rank import events, internal

GRACE = 1.0
"""Seconds that processes have to end before a guard kills them."""
DISMISS_SECONDS = 3.5
"""Seconds that guards have to end all processes."""
TRIES = 3
"""Attempts to connect to a host whose sshd closes connections because too many are being opened."""


@dataclass
class Guard:
    """The connection to a guard on the host that the user calls `name`.

    `machine` is empty until the guard has answered. Until then its stdin may belong to a login
    shell, so `orders`, the lines that all guards receive, are sent with the answer.
    """

    name: str
    process: subprocess.Popen[bytes]
    machine: str = ""
    tries: int = 1
    orders: Sequence[bytes] = ()
    _pending: bytes = b""

    def receive(self, data: bytes) -> list[int]:
        """Return the processes that have ended by the output `data` of the guard.

        At its end, return [0] for the connection.
        """
        if not data:
            return [0] if self.machine else []
        found, _, self._pending = events.split(self._pending + data)
        answer = next((e for e in found if e["event"] == "guard"), None)
        if answer and not self.machine:
            self.machine = answer["machine"]
            self.send(b"".join(self.orders))
        return [e["ended"] for e in found if e["event"] == "ended"]

    def send(self, line: bytes) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            os.write(self.process.stdin.fileno(), line)


@dataclass
class Guards:
    """One guard for each of `hosts`.

    A guard acts after `seconds` without a heartbeat, with 0 only when its stdin closes. At most
    `ssh.LOT` connections are being opened at a time, because sshd and bastions refuse more.
    """

    hosts: Sequence[str]
    seconds: float
    client: ssh.Client = ssh.PLAIN
    started: list[Guard] = field(default_factory=list, init=False)
    _orders: list[bytes] = field(default_factory=list, init=False)

    @property
    def names(self) -> dict[str, str]:
        """The name of each machine whose guard has answered."""
        return {guard.machine: guard.name for guard in self.started if guard.machine}

    def start(self) -> list[Guard]:
        """Start as many of the missing guards as may connect at a time.

        Call it again when a guard has answered.
        """
        connecting = sum(not guard.machine and guard.process.poll() is None for guard in self.started)
        left = self.hosts[len(self.started) :]
        new = [Guard(name, self._connect(name), orders=self._orders) for name in left[: max(0, ssh.LOT - connecting)]]
        self.started += new
        return new

    def restart(self, guard: Guard) -> bool:
        """Connect again to a guard that ended before its answer.

        Return False after `TRIES` attempts.
        """
        guard.process.wait()
        if guard.machine or guard.tries == TRIES:
            return False
        _close(guard.process)
        guard.tries += 1
        guard.process = self._connect(guard.name)
        return True

    def watch(self, machine: str, pids: Iterable[int]) -> None:
        """Have processes of `machine` watched, also by a guard that answers later."""
        line = f"watch {machine} {' '.join(map(str, pids))}\n".encode()
        self._orders.append(line)
        self._broadcast(line)

    def signal(self, machine: str, number: int, pids: Iterable[int]) -> bool:
        """Have signal `number` sent to watched processes of `machine`.

        Return False if no guard has answered there.
        """
        found = [guard for guard in self.started if guard.machine == machine]
        for guard in found:
            guard.send(f"signal {machine} {number} {' '.join(map(str, pids))}\n".encode())
        return bool(found)

    def beat(self) -> None:
        """Send a heartbeat to all guards."""
        self._broadcast(b"\n")

    def dismiss(self) -> None:
        """Have all guards end the processes that are left; wait for the reachable guards."""
        for guard in self.started:
            assert guard.process.stdin is not None
            guard.process.stdin.close()
        deadline = time.monotonic() + DISMISS_SECONDS
        for guard in self.started:
            try:
                guard.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                guard.process.kill()
                guard.process.wait()
            _close(guard.process)

    def _broadcast(self, line: bytes) -> None:
        for guard in self.started:
            if guard.machine:
                guard.send(line)

    def _connect(self, name: str) -> subprocess.Popen[bytes]:
        return _start(self.client.command(name, internal.argv("cli.follow.guard", f"{self.seconds:g}")))


def main(seconds: float) -> None:
    """Guard this host; `seconds` as in `Guards`."""
    mine: dict[int, psutil.Process] = {}
    watched: dict[int, int] = {}
    pending = b""
    events.emit(1, "guard")
    while ready := select.select([0, *watched], [], [], seconds or None)[0]:
        for descriptor in ready:
            if descriptor in watched:
                events.emit(1, "ended", ended=watched.pop(descriptor))
                os.close(descriptor)
        if 0 not in ready:
            continue
        data = os.read(0, 65536)
        if not data:
            break
        *lines, pending = (pending + data).split(b"\n")
        for verb, numbers in filter(None, map(_order, lines)):
            if verb == "watch":
                new = {process.pid: process for process in reap.existing(numbers) if process.pid not in mine}
                mine |= new
                watched |= _descriptors(new)
            else:
                for pid in {*numbers[1:]} & {*mine}:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        mine[pid].send_signal(numbers[0])
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    reap.end(mine.values(), GRACE)


def _descriptors(pids: Iterable[int]) -> dict[int, int]:
    """Return the pid by pidfd of each process that exists."""
    found = {}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            found[os.pidfd_open(pid)] = pid
    return found


def _order(line: bytes) -> tuple[str, list[int]] | None:
    """Return the verb and the numbers of a line, or None if it is no order to this machine."""
    verb, *words = line.decode(errors="replace").split() or [""]
    if verb not in {"watch", "signal"} or not words or words[0] != events.machine():
        return None
    return (verb, list(map(int, words[1:]))) if all(word.isdigit() for word in words[1:]) else None


def _start(argv: list[str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,
    )
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)
    return process


def _close(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


if __name__ == "__main__":
    main(float(sys.argv[1]))

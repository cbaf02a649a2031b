"""A process on every other host that ends a job's ranks there when the command that started them goes, or is silent.

The command starts `cli.guard SECONDS` over ssh, and writes lines to its stdin: `watch MACHINE PID ...` names
processes to look after, `signal MACHINE NUMBER PID ...` asks for a signal to some of them, and an empty line says that the
command still runs. A guard answers in events (`hvd_train.events`), which are found among what a login shell prints: `guard`
when it has begun, and `ended` for each process that has. So what a launcher leaves behind ends, ranks on a host that was cut
off end, and the command learns at once which process ended first.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cli import ssh
from hvd_train import events, internal

GRACE = 1.0
"""Seconds that processes have to end by themselves."""
SHARED = Path("/dev/shm")
SEGMENTS = ("sm_segment.", "vader_segment.", "osc_sm.", "osc_rdma.")
"""How the names of Open MPI's files in `SHARED` begin: what a user keeps there is not ours to delete."""
PATIENCE = 3.5
"""Seconds that guards may take to be done."""
TRIES = 3
"""How often a connection is made that ends before the guard has answered: sshd refuses some where many are made."""


@dataclass
class Guard:
    """A guard seen from here, on the host that the user calls `name`; `machine` is empty until the guard has answered."""

    name: str
    process: subprocess.Popen[bytes]
    machine: str = ""
    tries: int = 1
    orders: Sequence[bytes] = ()
    """What all guards are told; this one once it has answered: until then, its stdin may be that of a login shell."""
    _pending: bytes = b""

    def hear(self, data: bytes) -> list[int]:
        """The processes that ended, by what the guard has sent; 0 is the guard itself, at the end of its output."""
        if not data:
            return [0] if self.machine else []
        found, _, self._pending = events.split(self._pending + data)
        answer = next((e for e in found if e["event"] == "guard"), None)
        if answer and not self.machine:
            self.machine = answer["machine"]
            self.say(b"".join(self.orders))
        return [e["ended"] for e in found if e["event"] == "ended"]

    def say(self, line: bytes) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            os.write(self.process.stdin.fileno(), line)


@dataclass
class Guards:
    """A guard for each of `hosts`; they act after `seconds` of silence, with 0 only when this command goes.

    At most `ssh.LOT` connections are being made at a time, because sshd and bastions refuse more.
    """

    hosts: Sequence[str]
    seconds: float
    client: ssh.Client = ssh.PLAIN
    posted: list[Guard] = field(default_factory=list, init=False)
    _told: list[bytes] = field(default_factory=list, init=False)

    def post(self) -> list[Guard]:
        """Starts as many as may be started now of those that have not been; call it again when a guard has answered."""
        calling = sum(not guard.machine and guard.process.poll() is None for guard in self.posted)
        left = self.hosts[len(self.posted) :]
        new = [Guard(name, self._call(name), orders=self._told) for name in left[: max(0, ssh.LOT - calling)]]
        self.posted += new
        return new

    def again(self, guard: Guard) -> bool:
        """Starts a guard again whose connection ended before it had answered, a few times; whether it did."""
        guard.process.wait()
        if guard.machine or guard.tries == TRIES:
            return False
        _close(guard.process)
        guard.tries += 1
        guard.process = self._call(guard.name)
        return True

    def watch(self, machine: str, pids: Iterable[int]) -> None:
        """Names processes of `machine`; guards that answer later are told too."""
        line = f"watch {machine} {' '.join(map(str, pids))}\n".encode()
        self._told.append(line)
        for guard in self.posted:
            if guard.machine:
                guard.say(line)

    def signal(self, machine: str, number: int, pids: Iterable[int]) -> bool:
        """Has the guard of `machine` send a signal to processes that it looks after; whether there is such a guard."""
        found = [guard for guard in self.posted if guard.machine == machine]
        for guard in found:
            guard.say(f"signal {machine} {number} {' '.join(map(str, pids))}\n".encode())
        return bool(found)

    def here(self) -> None:
        """Says that this command is there."""
        for guard in self.posted:
            if guard.machine:
                guard.say(b"\n")

    def dismiss(self) -> None:
        """Lets them end what is left, and waits for that where they can be reached."""
        for guard in self.posted:
            assert guard.process.stdin is not None
            guard.process.stdin.close()
        deadline = time.monotonic() + PATIENCE
        for guard in self.posted:
            try:
                guard.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                guard.process.kill()
                guard.process.wait()
            _close(guard.process)

    def _call(self, name: str) -> subprocess.Popen[bytes]:
        return _start(self.client.command(name, internal.argv("cli.guard", f"{self.seconds:g}")))


def end(processes: Iterable[psutil.Process], grace: float) -> None:
    """End these and all below them: by themselves within `grace` seconds, or by SIGKILL."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [process, *process.children(recursive=True)]
    shared = {path for process in found for path in segments(process.pid)}
    _, left = psutil.wait_procs(found, timeout=grace)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=1)
    for process in found:
        clear(process.pid)
    for path in shared:
        path.unlink(missing_ok=True)


def known(pids: Iterable[int]) -> list[psutil.Process]:
    """Those processes that are there. They stay themselves, also when their numbers are used again."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return found


def main(seconds: float) -> None:
    """Guards this host; `seconds` as in `Guards`."""
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
                new = {process.pid: process for process in known(numbers) if process.pid not in mine}
                mine |= new
                watched |= {os.pidfd_open(pid): pid for pid in new}
            else:
                for pid in {*numbers[1:]} & {*mine}:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        mine[pid].send_signal(numbers[0])
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    end(mine.values(), GRACE)


def _order(line: bytes) -> tuple[str, list[int]] | None:
    """The verb and the numbers of a line, if it is an order to this machine."""
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


def segments(pid: int) -> set[Path]:
    """The memory that a process shares through Open MPI, by files that stay where its launcher was killed."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        paths = (Path(line.split(maxsplit=5)[5]) for line in lines if f" {SHARED}/" in line)
        return {path for path in paths if path.name.startswith(SEGMENTS) and path.exists()}
    return set()


def session(leader: int) -> list[psutil.Process]:
    """What is left of the session of a launcher: also ranks that have not said a word yet, whose parent is gone."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def job_number(space: str) -> int:
    """What Open MPI 5 makes of a job's PMIx namespace, NAME@N, and writes into names of files (a hash by Bob Jenkins)."""
    name, _, number = space.rpartition("@")
    value = 0
    for byte in name.encode():
        value = (value + byte) & _WORD
        value = (value + (value << 10)) & _WORD
        value ^= value >> 6
    value = (value + (value << 3)) & _WORD
    value ^= value >> 11
    value = (value + (value << 15)) & _WORD
    return ((value >> 16) ^ (value & 0xFFFF)) << 16 | int(number)


_WORD = 0xFFFFFFFF


def clear_job(launcher: int) -> None:
    """Remove the files that ranks here, all of them gone, made in the job of an mpirun that was killed."""
    host, temporary = socket.gethostname(), Path(tempfile.gettempdir())
    for name in {host, host.partition(".")[0]}:
        job = job_number(f"prterun-{name}-{launcher}@1")
        for path in SHARED.glob(f"*.{os.getuid()}.{job:x}.*"):
            if path.name.startswith(SEGMENTS):
                path.unlink(missing_ok=True)
        of_all_jobs = temporary / f"ompi.{name}.{os.getuid()}"
        shutil.rmtree(of_all_jobs / "jf.0" / str(job), ignore_errors=True)
        with contextlib.suppress(OSError):  # other jobs are in it
            (of_all_jobs / "jf.0").rmdir()
            of_all_jobs.rmdir()


def clear(pid: int) -> None:
    """A daemon of Open MPI removes its folder only when it ends by itself."""
    for name in ("ompi", "prted"):
        shutil.rmtree(Path(tempfile.gettempdir()) / f"{name}.{pid}", ignore_errors=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))

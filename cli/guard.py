"""A process on every other host that ends a job's ranks there when the command that started them goes, or is silent.

It is started over ssh, `python -m cli.guard SECONDS`, and reads lines on stdin: `HOST PID ...` are processes to look after, an
empty line says that the command is there. It prints the host's own name, and then the number of each process that ends. So what
a launcher leaves behind ends, ranks on a host that was cut off end, and the command hears at once who went first.
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

from cli.ssh import OPTIONS

GRACE = 1.0
"""Seconds that processes have to end by themselves."""
SHARED = Path("/dev/shm")
SEGMENTS = ("sm_segment.", "vader_segment.", "osc_sm.", "osc_rdma.")
"""How the names of Open MPI's files in `SHARED` begin: what a user keeps there is not ours to delete."""
PATIENCE = 3.5
"""Seconds that guards may take to be done."""


@dataclass
class Guard:
    """A guard seen from here; `host` is what its host calls itself, and empty until it has said so."""

    process: subprocess.Popen[bytes]
    host: str = ""

    def news(self, data: bytes) -> list[int]:
        """Processes that ended, in what the guard has printed; 0 is the guard itself, at the end of its output."""
        words = data.decode().split()
        if not data:
            return [0] if self.host else []
        if not self.host:
            self.host, *words = words
        return [int(word) for word in words]

    def say(self, line: bytes) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            os.write(self.process.stdin.fileno(), line)


@dataclass
class Guards:
    """A guard for each of `hosts`, once `post` was called; they act after `seconds` of silence, with 0 only when we go."""

    hosts: Sequence[str]
    seconds: float
    posted: list[Guard] = field(default_factory=list, init=False)

    def post(self) -> list[Guard]:
        """Send out those that are not there yet."""
        program = f"{sys.executable} -m cli.guard {self.seconds:g}"
        new = [Guard(_start(["ssh", *OPTIONS, host, program])) for host in self.hosts[len(self.posted) :]]
        self.posted += new
        return new

    def tell(self, host: str = "", pids: Iterable[int] = ()) -> None:
        """Name processes of `host`; without any, say that we are here."""
        line = " ".join([host, *map(str, pids)]).encode() + b"\n"
        for guard in self.posted:
            guard.say(line)

    def dismiss(self) -> None:
        """Let them end what is left, and wait for that where they can be reached."""
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
            assert guard.process.stdout is not None
            guard.process.stdout.close()


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
    watched: dict[int, int] = {}
    mine: list[psutil.Process] = []
    pending = b""
    print(socket.gethostname(), flush=True)
    while ready := select.select([0, *watched], [], [], seconds or None)[0]:
        for descriptor in ready:
            if descriptor in watched:
                print(watched.pop(descriptor), flush=True)
                os.close(descriptor)
        if 0 not in ready:
            continue
        data = os.read(0, 65536)
        if not data:
            break
        *lines, pending = (pending + data).split(b"\n")
        for words in map(str.split, map(bytes.decode, lines)):
            if words and words[0] == socket.gethostname():
                new = known(map(int, words[1:]))
                mine += new
                watched |= {os.pidfd_open(process.pid): process.pid for process in new}
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    end(mine, GRACE)


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

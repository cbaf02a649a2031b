"""End the processes that a job leaves behind, and remove the files of killed processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from hvd_train.rank.segments import PREFIXES, SHARED, segments

if TYPE_CHECKING:
    from cli.follow.process import LauncherProcess

_WORD = 0xFFFFFFFF


def reap(launcher: LauncherProcess, pids: Iterable[int]) -> None:
    """End `launcher`, the ranks with `pids` on this machine, and what else the launcher leaves."""
    left = existing(pids)
    if launcher.is_running:
        left += psutil.Process(launcher.pid).children(recursive=True)
        launcher.end()
    was_killed = launcher.returncode < 0
    end([*left, *session(launcher.pid)] if was_killed else left, 0)
    if was_killed:
        remove_folders(launcher.pid)
        remove_job_files(launcher.pid)


def end(processes: Iterable[psutil.Process], grace: float) -> None:
    """End `processes` and their descendants, by SIGKILL after `grace` seconds; remove files."""
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
        remove_folders(process.pid)
    for path in shared:
        path.unlink(missing_ok=True)


def existing(pids: Iterable[int]) -> list[psutil.Process]:
    """Return the processes that exist. psutil tells them from later ones of the same pid."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return found


def session(leader: int) -> list[psutil.Process]:
    """Return the processes in the session of a launcher that has ended.

    They include ranks that have reported nothing yet and whose parent is gone.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def remove_folders(pid: int) -> None:
    """Remove the folders of a daemon of Open MPI, which removes them only if it ends by itself."""
    for name in ("ompi", "prted"):
        shutil.rmtree(Path(tempfile.gettempdir()) / f"{name}.{pid}", ignore_errors=True)


def remove_job_files(launcher: int) -> None:
    """Remove the files on this machine of ranks of a killed mpirun. The ranks must have ended."""
    host, temporary = socket.gethostname(), Path(tempfile.gettempdir())
    for name in {host, host.partition(".")[0]}:
        job = job_number(f"prterun-{name}-{launcher}@1")
        for path in SHARED.glob(f"*.{os.getuid()}.{job:x}.*"):
            if path.name.startswith(PREFIXES):
                path.unlink(missing_ok=True)
        of_all_jobs = temporary / f"ompi.{name}.{os.getuid()}"
        shutil.rmtree(of_all_jobs / "jf.0" / str(job), ignore_errors=True)
        with contextlib.suppress(OSError):  # it holds folders of other jobs
            (of_all_jobs / "jf.0").rmdir()
            of_all_jobs.rmdir()


def job_number(space: str) -> int:
    """Return the number in file names of Open MPI 5 for the PMIx namespace `space`, NAME@N.

    It is the one-at-a-time hash of Bob Jenkins.
    """
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

"""Batches from worker processes."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import wait
from typing import Any

from hvd_train.data.loading.channel import Channel, Gone
from hvd_train.data.loading.failure import UNKNOWN, Failure, LoadingError
from hvd_train.data.loading.parcel import Parcel
from hvd_train.data.loading.worker import INDEX, STATUS
from hvd_train.errors import UserError

GRACE = 1.0
"""Seconds in which workers may end their batch when the loader is closed."""
_BLOCKED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
"""Signals for ranks. SLURM sends them to all processes of a step."""
_PROGRAM = """
import os, sys
os.setpgrp()
sys.path[:] = {path!r}
from hvd_train.data.loading.worker import run
run({control}, {indices}, {sockets})
"""


@dataclass(frozen=True)
class _Task:
    load: int
    number: int
    positions: Any
    name: str
    """The name of the data in messages."""


class Processes:
    """Makes batches in `workers` processes, each of which has up to `prefetch` batches to make.

    Batch i of a load is made by worker i modulo `workers`. The processes start to import at once and
    take up the standard streams that this process has at the first batch.
    """

    def __init__(self, workers: int, prefetch: int) -> None:
        self._ahead = workers * prefetch
        self._lock = threading.RLock()
        """Guards what follows: two loads may be under way, each in a thread that pins its batches."""
        self._parts: list[Any] = []
        """Samples that all workers have. They are kept, so that their ids stay theirs."""
        self._loads = 0
        self._forked = threading.Event()
        self._active: set[int] = set()
        self._arrived: dict[tuple[int, int], Any] = {}
        self._given: list[deque[_Task]] = [deque() for _ in range(workers)]
        self._start(workers)

    def prepare(self, split: Any) -> None:
        """Send the samples of `split` to all workers; UserError if they cannot be pickled."""
        with self._lock:
            part = samples(split)
            if all(part is not known for known in self._parts):
                self._send_all(("part",), self._parcel(part, name(split)))
                self._parts.append(part)

    def load(self, split: Any, plan: Iterable[Any]) -> Iterator[Any]:
        """Return the batches of `split` at the positions of `plan`, in this order; begin to make them."""
        batches = self._batches(self._begin(split), name(split), enumerate(plan))
        next(batches)
        return batches

    def _batches(self, load: int, of: str, plan: Iterator[tuple[int, Any]]) -> Iterator[Any]:
        """Yield once the first batches are under way, and then each batch."""
        tasks: deque[_Task] = deque()
        try:
            tasks.extend(self._give(_Task(load, *entry, of)) for entry in islice(plan, self._ahead))
            yield
            while tasks:
                batch = self._take(tasks.popleft())
                tasks.extend(self._give(_Task(load, *entry, of)) for entry in islice(plan, 1))
                yield batch
        finally:
            self._end(load)

    def close(self) -> None:
        """End the workers; those that have not ended their batch after `GRACE` seconds are killed."""
        self._finalizer()

    def _begin(self, split: Any) -> int:
        """Send `split` to the workers, which are forked before the first load; return a number for the load."""
        with self._lock:
            self.prepare(split)
            if not self._forked.is_set():
                self._fork()
                self._forked.set()
            self._loads += 1
            numbers = {id(part): number for number, part in enumerate(self._parts)}
            parcel = self._parcel(split, name(split), lambda value: numbers.get(id(value)))
            self._send_all(("split", self._loads, name(split)), parcel)
            self._active.add(self._loads)
            return self._loads

    def _fork(self) -> None:
        """Let the fork server fork the workers, and wait until it has imported what they need."""
        started = b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self._control, [b"f"], [1, 2])
            started = self._control.recv(STATUS.size)
        if not started:
            raise LoadingError("data: the worker processes could not start; the reason is printed above")

    def _parcel(self, value: Any, of: str, reference: Callable[[Any], int | None] | None = None) -> Parcel:
        try:
            return Parcel(value, reference)
        except LoadingError:
            raise
        except Exception as error:  # the methods of a user's class can raise anything
            raise UserError(
                f"{of}: cannot be sent to worker processes ({error}); set data.worker_type: threads, or data.workers: 0"
            ) from error

    def _send_all(self, announcement: tuple[Any, ...], parcel: Parcel) -> None:
        for worker, channel in enumerate(self._channels):
            try:
                channel.send(announcement)
                channel.send_parcel(parcel)
            except Gone:
                raise self._lost(worker) from None
        parcel.close()

    def _give(self, task: _Task) -> _Task:
        """Ask the worker of `task` for its batch."""
        worker = task.number % len(self._channels)
        with self._lock:
            try:
                self._channels[worker].send(("batch", task.load, task.number, task.positions))
            except Gone:
                raise self._lost(worker) from None
            self._given[worker].append(task)
        return task

    def _take(self, task: _Task) -> Any:
        """Return the batch of `task`, and keep those of other loads that arrive before it."""
        worker, key = task.number % len(self._channels), (task.load, task.number)
        with self._lock:
            while key not in self._arrived:
                try:
                    load, number, batch = self._channels[worker].receive()
                except Gone:
                    raise self._lost(worker) from None
                self._given[worker].popleft()
                if load in self._active:
                    self._arrived[load, number] = batch
            found = self._arrived.pop(key)
        if isinstance(found, Failure):
            raise found.exception(task.name)
        return found

    def _end(self, load: int) -> None:
        with self._lock:
            self._active.discard(load)
            for key in [key for key in self._arrived if key[0] == load]:
                del self._arrived[key]
            for channel in self._channels:
                with contextlib.suppress(Gone, OSError):  # a worker may be lost, the loader may be closed
                    channel.send(("end", load))

    def _lost(self, worker: int) -> LoadingError:
        """Return the error for `worker`, which has ended before its time."""
        given = self._given[worker]
        (sample,) = INDEX.unpack_from(self._indices, INDEX.size * worker)
        ended = self._how_ended(worker)
        if not given:
            return LoadingError(f"data: worker process {worker} {ended}")
        what = f"{given[0].name}[{sample}]" if sample != UNKNOWN else f"a batch of {given[0].name}"
        return LoadingError(f"data: worker process {worker} {ended} while it made {what}")

    def _how_ended(self, worker: int) -> str:
        """Return how `worker` ended, which the fork server reports."""
        while wait([self._control], GRACE):
            report = self._control.recv(STATUS.size)
            if not report:
                break
            number, status = STATUS.unpack(report)
            if number == worker:
                return described(os.waitstatus_to_exitcode(status))
        return "ended"

    def _start(self, workers: int) -> None:
        """Start the fork server, with signals blocked and a process group of its own.

        It stays in the session of the rank: Linux divides processor time among sessions first, and
        workers in a session of their own would take it from the rank.
        """
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(workers)]
        file = os.memfd_create("ddl-samples", os.MFD_CLOEXEC)
        os.write(file, INDEX.pack(UNKNOWN) * workers)
        self._indices = mmap.mmap(file, 0)
        sockets = [theirs.fileno() for _, theirs in pairs]
        program = _PROGRAM.format(path=sys.path, control=control.fileno(), indices=file, sockets=sockets)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
        try:
            self._server = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                pass_fds=[control.fileno(), file, *sockets],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(file)
            for end in (control, *(theirs for _, theirs in pairs)):
                end.close()
        self._channels = [Channel(ours) for ours, _ in pairs]
        # A run that is refused drops its loader, and the process may go on to another run.
        self._finalizer = weakref.finalize(self, _end, self._channels, self._control, self._server, self._forked)


def _end(
    channels: list[Channel], control: socket.socket, server: subprocess.Popen[bytes], forked: threading.Event
) -> None:
    """End the fork server and the workers, if it has `forked` any; else it may still import."""
    for channel in channels:
        channel.close()
    if not forked.is_set():
        server.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(GRACE)
    control.close()
    server.wait()


def described(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    number = -code
    known = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    memory = " (the kernel does so if the memory of the host is exhausted)" if number == signal.SIGKILL else ""
    return f"was killed by {known}{memory}"


def samples(split: Any) -> Any:
    """Return the part of `split` that is the same in every epoch."""
    inner = next((getattr(split, part) for part in ("items", "stream", "split") if hasattr(split, part)), None)
    return samples(inner) if inner is not None else split


def name(split: Any) -> str:
    """Return the name of the data in messages."""
    return str(getattr(samples(split), "name", "data"))

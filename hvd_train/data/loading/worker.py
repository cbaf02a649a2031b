"""The processes that make batches: a fork server and its workers.

A rank may not fork once MPI has started, and an import of torch in each worker takes seconds. The
rank therefore executes one new program, the fork server, which imports torch and forks the workers. The
fork server then waits for them, reports how a worker ended, and kills all of them once the rank is
gone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import mmap
import os
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from hvd_train.data.loading.channel import Channel, Gone
from hvd_train.data.loading.failure import UNKNOWN, LoadingError, failure
from hvd_train.errors import UserError

STATUS = struct.Struct("=qq")
"""What the fork server reports of a worker that ended: its number and its wait status."""
INDEX = struct.Struct("=q")
"""Where a worker writes the position of the sample that it makes."""


def run(control: int, indices: int, sockets: Sequence[int]) -> None:
    """Fork a worker for each of `sockets`, once the rank says so, wait until all have ended, and exit.

    `control` is a socket to the rank. `indices` is a memory file with an `INDEX` for each worker.
    """
    _keep_mpi_out()
    rank = socket.socket(fileno=control)
    _, outputs, _, _ = socket.recv_fds(rank, 1, 2)
    if len(outputs) != 2:
        return
    for file, standard in zip(outputs, (1, 2), strict=True):
        os.dup2(file, standard)
        os.close(file)
    memory = mmap.mmap(indices, INDEX.size * len(sockets))
    gc.freeze()  # the workers share the pages of what is imported
    workers = {_fork(number, rank, memory, sockets): number for number in range(len(sockets))}
    for descriptor in sockets:
        os.close(descriptor)
    rank.send(STATUS.pack(UNKNOWN, 0))  # they are there
    threading.Thread(target=_end_with, args=(rank, list(workers)), daemon=True).start()
    while workers:
        process, status = os.wait()
        if process in workers:
            with contextlib.suppress(OSError):
                rank.send(STATUS.pack(workers.pop(process), status))
    os.killpg(os.getpgrp(), signal.SIGKILL)  # also what the workers started


def _keep_mpi_out() -> None:
    """Keep mpi4py, which a module of the user may import, from starting MPI in a worker."""
    with contextlib.suppress(ImportError):
        import mpi4py

        mpi4py.rc.initialize = False


def _end_with(rank: socket.socket, workers: Sequence[int]) -> None:
    """Kill `workers` when the rank has closed its end. `run` then reaps them."""
    with contextlib.suppress(OSError):
        rank.recv(1)
    for process in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _fork(number: int, rank: socket.socket, memory: mmap.mmap, sockets: Sequence[int]) -> int:
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        rank.close()
        for other, descriptor in enumerate(sockets):
            if other != number:
                os.close(descriptor)
        faulthandler.enable()
        torch.set_num_threads(1)
        _Worker(Channel(socket.socket(fileno=sockets[number]), private=True), memory, INDEX.size * number).serve()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


class _Worker:
    """Answers what the rank sends to `channel`, in this order.

    - `("part", )` and then an object: a part of splits, whose number is the count of parts before it.
    - `("split", load, name)` and then a split: the one of a load.
    - `("batch", load, number, positions)`: the answer is `(load, number, batch)` or a `Failure` instead.
    - `("end", load)`: the split of the load is not used any more.
    """

    def __init__(self, channel: Channel, memory: mmap.mmap, offset: int) -> None:
        self._channel, self._memory, self._offset = channel, memory, offset
        self._parts: list[Any] = []
        self._splits: dict[int, Any] = {}
        self._names: dict[int, str] = {}

    def serve(self) -> None:
        """Answer until the rank closes the channel."""
        with contextlib.suppress(Gone):
            while True:
                kind, *arguments = self._channel.receive()
                getattr(self, f"_{kind}")(*arguments)

    def _part(self) -> None:
        self._parts.append(self._received())

    def _split(self, load: int, name: str) -> None:
        split, self._names[load] = self._received(), name
        if isinstance(split, _Unusable):
            split = _Unusable(
                UserError(
                    f"{name}: a worker process cannot unpickle it ({type(split.error).__name__}: {split.error}); set "
                    "data.worker_type: threads, or data.workers: 0"
                )
            )
        self._splits[load] = replace(split, note=self._note) if hasattr(split, "note") else split

    def _end(self, load: int) -> None:
        del self._splits[load], self._names[load]

    def _batch(self, load: int, number: int, positions: Any) -> None:
        self._note(UNKNOWN)
        try:
            answer = self._splits[load].batch(positions)
        except Exception as error:
            answer = failure(error, self._sample)
        self._send(load, number, answer)

    def _send(self, load: int, number: int, answer: Any) -> None:
        try:
            self._channel.send((load, number, answer))
        except Gone:
            raise
        except Exception as error:
            if not isinstance(error, LoadingError):
                error = UserError(
                    f"{self._names[load]}: a batch cannot be sent from a worker process ({error}); make it of tensors, "
                    "numbers and strings, or set data.worker_type: threads"
                )
            self._channel.send((load, number, failure(error, UNKNOWN)))

    def _received(self) -> Any:
        """Return the next object; one that raises the reason if it cannot be unpickled here."""
        try:
            return self._channel.receive(self._known)
        except Gone:
            raise
        except Exception as error:
            return _Unusable(error)

    def _known(self, number: int) -> Any:
        part = self._parts[number]
        if isinstance(part, _Unusable):
            raise part.error
        return part

    def _note(self, sample: int) -> None:
        INDEX.pack_into(self._memory, self._offset, sample)

    @property
    def _sample(self) -> int:
        return int(INDEX.unpack_from(self._memory, self._offset)[0])


@dataclass
class _Unusable:
    """Stands for a split that cannot be unpickled in a worker."""

    error: Exception

    def batch(self, positions: Any) -> Any:
        raise self.error

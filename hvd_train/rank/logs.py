"""Send the output of a rank to its log file, and for some ranks to the terminal too."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TextIO

from hvd_train.rank import pump

_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
"""Signals for ranks. SLURM sends them to all processes of a step."""


class Output:
    """Descriptors 1 and 2 of this process, including the output of C libraries.

    `terminal` and `errors` are copies of both from before `capture`. Python's output becomes
    unbuffered, as with `python -u`.
    """

    def __init__(self) -> None:
        self.terminal = os.dup(1)
        self.errors = os.dup(2)
        self._pump_ended: int | None = None
        """A pipe that the pump closes when it ends."""
        os.register_at_fork(after_in_child=self._close)
        self._flush()
        if sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__:
            sys.stdout = sys.__stdout__ = _write_through(sys.stdout, 1)  # type: ignore[misc, assignment, arg-type]
            sys.stderr = sys.__stderr__ = _write_through(sys.stderr, 2)  # type: ignore[misc, assignment, arg-type]

    def capture(self, log: Path | None, rank: int, *, show: bool, tag: bool = False) -> None:
        """Send all later output to the file `log` and, with `show`, to the terminal.

        With `tag`, each line on the terminal begins with the rank.
        """
        self._flush()
        file = self._open(log, rank)
        terminals = (self.terminal, self.errors) if show else (pump.NONE,)
        pipes = [os.pipe() for _ in terminals]
        streams = [f"{reader}:{to}" for (reader, _), to in zip(pipes, terminals, strict=True)]
        arguments = [str(rank), str(os.getpid()), str(file), f"[{rank}] " if tag else "", str(self.errors), *streams]
        self._pump_ended, until_its_end = os.pipe()
        passed = [file, self.errors, *terminals, *(reader for reader, _ in pipes), until_its_end]
        _start(arguments, [descriptor for descriptor in passed if descriptor != pump.NONE])
        os.dup2(pipes[0][1], 1)
        os.dup2(pipes[-1][1], 2)  # output that is not shown keeps its order in the log
        for descriptor in (*(end for pipe in pipes for end in pipe), file, until_its_end):
            if descriptor != pump.NONE:
                os.close(descriptor)

    def release(self) -> None:
        """Undo `capture`, and wait at most 2 seconds until the pump has written all output."""
        self._flush()
        os.dup2(self.terminal, 1)
        os.dup2(self.errors, 2)
        if self._pump_ended is not None:
            wait([self._pump_ended], 2)
            os.close(self._pump_ended)
            self._pump_ended = None

    def warn(self, text: str) -> None:
        """Print a warning on the stderr from before `capture`."""
        os.write(self.errors, f"ddl: warning: {text}\n".encode())

    def stream(self) -> TextIO:
        """Return a text stream to the terminal that drops what the terminal does not accept."""
        return io.TextIOWrapper(io.BufferedWriter(_LossyWriter(os.dup(self.terminal), "w")), "utf-8")

    def _open(self, log: Path | None, rank: int) -> int:
        if log is None:
            return pump.NONE
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            self.warn(f"rank {rank}: no log is written to {log} ({error.strerror})")
            return pump.NONE

    def _close(self) -> None:
        """Close the copies in a forked child.

        A child that outlives the rank must not hold the launcher's pipes open.
        """
        for descriptor in (self.terminal, self.errors):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    @staticmethod
    def _flush() -> None:
        sys.stdout.flush()
        sys.stderr.flush()


class _CompleteWriter(io.FileIO):
    """A descriptor whose `write` writes all bytes, even if a signal interrupts a single write."""

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        while left:
            left = left[super().write(left) :]
        return size


class _LossyWriter(io.FileIO):
    """A descriptor whose `write` drops what cannot be written. The pump reports the loss."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _start(arguments: list[str], descriptors: list[int]) -> None:
    """Start the pump as a process that is no child of this one.

    So a script can wait for all its children. The pump blocks the signals for ranks. It has a
    session of its own, so a launcher that kills the rank's group spares it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        subprocess.run(  # the shell receives the command as parameters, starts it and exits
            ["/bin/sh", "-c", '"$@" &', "sh", sys.executable, "-I", "-S", pump.__file__, *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=descriptors, start_new_session=True, check=True,
        )  # fmt: skip
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _write_through(stream: TextIO, descriptor: int) -> TextIO:
    raw = _CompleteWriter(descriptor, "wb", closefd=False)
    raw.name = stream.name
    found = io.TextIOWrapper(raw, stream.encoding, stream.errors, newline="\n", write_through=True)
    found.mode = stream.mode  # type: ignore[misc]
    return found

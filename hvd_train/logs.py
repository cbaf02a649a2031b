"""Where a rank's output goes: a file of its own, and for some ranks the terminal too."""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, TextIO

from hvd_train import pump

_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
"""For ranks. SLURM sends them to all processes of a step."""


class Output:
    """Descriptors 1 and 2 of this process, C libraries included. `terminal` and `errors` stay what they were at first.

    From here on Python shows what it prints at once, as with `python -u`.
    """

    def __init__(self) -> None:
        self.terminal = os.dup(1)
        self.errors = os.dup(2)
        self._carried: int | None = None
        """Comes to its end when the pump does."""
        os.register_at_fork(after_in_child=self._close)
        self._flush()
        if sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__:
            sys.stdout = sys.__stdout__ = _unbuffered(sys.stdout, 1)  # type: ignore[misc, assignment, arg-type]
            sys.stderr = sys.__stderr__ = _unbuffered(sys.stderr, 2)  # type: ignore[misc, assignment, arg-type]

    def capture(self, log: Path | None, rank: int, *, show: bool, tag: bool = False) -> None:
        """Send everything to the file `log` from here on, and if `show` to the terminal as well, with a `tag` each line."""
        self._flush()
        file = self._open(log, rank)
        terminals = (self.terminal, self.errors) if show else (pump.NONE,)
        pipes = [os.pipe() for _ in terminals]
        streams = [f"{reader}:{to}" for (reader, _), to in zip(pipes, terminals, strict=True)]
        words = [str(rank), str(os.getpid()), str(file), f"[{rank}] " if tag else "", str(self.errors), *streams]
        self._carried, until_its_end = os.pipe()
        passed = [file, self.errors, *terminals, *(reader for reader, _ in pipes), until_its_end]
        _start(words, [descriptor for descriptor in passed if descriptor != pump.NONE])
        os.dup2(pipes[0][1], 1)
        os.dup2(pipes[-1][1], 2)  # what nobody sees keeps its order
        for descriptor in (*(end for pipe in pipes for end in pipe), file, until_its_end):
            if descriptor != pump.NONE:
                os.close(descriptor)

    def release(self) -> None:
        """Undo `capture`, once all that was written has arrived."""
        self._flush()
        os.dup2(self.terminal, 1)
        os.dup2(self.errors, 2)
        if self._carried is not None:
            select.select([self._carried], [], [], 2)

    def stream(self) -> TextIO:
        """Text for the terminal alone; one that takes nothing is no reason to stop."""
        return io.TextIOWrapper(io.BufferedWriter(_Lasting(os.dup(self.terminal), "w")), "utf-8")

    def _open(self, log: Path | None, rank: int) -> int:
        if log is None:
            return pump.NONE
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            text = f"ddl: warning: rank {rank}: no log is written to {log} ({error.strerror})\n"
            os.write(self.errors, text.encode())
            return pump.NONE

    def _close(self) -> None:
        """In a forked child: one that outlives the rank must not hold what the launcher reads to its end."""
        for descriptor in (self.terminal, self.errors):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    @staticmethod
    def _flush() -> None:
        sys.stdout.flush()
        sys.stderr.flush()


class _Whole(io.FileIO):
    """Writes all that it is given; a signal may end a single write too soon."""

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        while left:
            left = left[super().write(left) :]
        return size


class _Lasting(io.FileIO):
    """A descriptor to write to; what cannot be written is left out, of which the pump tells."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _start(words: list[str], descriptors: list[int]) -> None:
    """Start the pump, which a script that waits for all its children does not wait for.

    Signals for the rank stay blocked in it, and a launcher that kills the rank's group leaves it alone.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        subprocess.run(  # the shell reads no word of the command: it gets them as parameters, and leaves
            ["/bin/sh", "-c", '"$@" &', "sh", sys.executable, "-I", "-S", pump.__file__, *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=descriptors, start_new_session=True, check=True,
        )  # fmt: skip
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _unbuffered(stream: TextIO, descriptor: int) -> TextIO:
    raw = _Whole(descriptor, "wb", closefd=False)
    raw.name = stream.name
    found = io.TextIOWrapper(raw, stream.encoding, stream.errors, newline="\n", write_through=True)
    found.mode = stream.mode  # type: ignore[misc]
    return found

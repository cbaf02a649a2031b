"""Copy the output of one rank to its log and to the terminal, in a process that outlives it.

All output arrives, even if the rank crashes, closes its descriptors, or leaves children that hold
them. A terminal or disk that accepts nothing never blocks the rank. `hvd_train.rank.logs` starts
this file by its path, so it imports only the standard library.
"""

from __future__ import annotations

import os
import re
import select
import stat
import sys
import time

READ, BLOCK, LONGEST = 65536, 4000, 65536
"""Most bytes of a read, of a write to a terminal (launchers forward up to 4096), and of a line."""
PARTIAL = 1.0
"""Seconds after which a line without a line break is shown."""
STALL = 5.0
"""Seconds that a terminal may accept nothing before output is dropped."""
GRACE, LINGER = 0.3, 5.0
"""Seconds without output, and seconds in all, after which children of an ended rank are left."""
OMITTED = b"\nddl: output was omitted here because the terminal did not accept it; the log of the rank has it\n"
NONE = -1

_LINE = re.compile(rb"[^\r\n]*\r?\n|[^\r\n]+\r")
_WHOLE = re.compile(rb".*(?:\n|\r(?!\n|\Z))", re.DOTALL)


class Lines:
    """Inserts `tag` before every line of a stream.

    A line ends with \\n or, in a progress bar, with \\r.
    """

    def __init__(self, tag: bytes) -> None:
        self._tag = tag
        self._part = b""
        self.since = 0.0
        """The time at which the incomplete line began."""

    def take(self, data: bytes, now: float) -> bytes:
        """Return the lines that `data` completes. Without a tag, return `data`."""
        if not self._tag:
            return data
        self.since = self.since if self._part else now
        data = self._part + data
        whole = _WHOLE.match(data)
        end = whole.end() if whole else 0
        self.since = now if end else self.since
        self._part = data[end:]
        lines = _LINE.sub(lambda line: self._tag + line[0], data[:end])
        return lines + (self.rest() if len(self._part) > LONGEST else b"")

    @property
    def has_partial(self) -> bool:
        """True if the last line is incomplete."""
        return bool(self._part)

    def rest(self) -> bytes:
        """Return the incomplete line with a line break. Other output then begins on a new line."""
        part, self._part = self._part, b""
        return self._tag + part + (b"" if part.endswith(b"\r") else b"\n") if part else b""


class TerminalWriter:
    """A descriptor whose reader may be slow or gone.

    `problem` is the error that ended writing to it.
    """

    def __init__(self, descriptor: int, paced: bool) -> None:
        self._descriptor = _unblocked(descriptor)
        self._paced = paced
        self._takes = True
        self._omitted = False
        self.problem = ""

    def write(self, data: bytes) -> None:
        """Write `data`; drop what the descriptor does not accept within STALL seconds."""
        for block in _blocks(data) if self._paced else [data]:
            while block and not self.problem and self._has_room():
                block = self._missing() + block
                block = block[self._write(block[:BLOCK]) :]
            if self._paced:
                time.sleep(
                    0.001
                )  # gives the launcher time to read whole lines, so that ranks are not mixed within a line

    def _has_room(self) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        self._takes = bool(poll.poll(STALL * 1000 if self._takes else 0))
        self._omitted = self._omitted or not self._takes
        return self._takes

    def _missing(self) -> bytes:
        left_out, self._omitted = self._omitted, False
        return OMITTED if left_out else b""

    def _write(self, data: bytes) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            time.sleep(0.001)
            return 0
        except OSError as error:
            self.problem = str(error.strerror)
            return 0


class Pump:
    """Copies the output of the rank `rank`, whose pid is `process`.

    `log` is the descriptor of its log. `streams` maps each descriptor to read to the descriptor of
    its terminal, or to NONE.
    """

    def __init__(self, rank: str, process: int, log: int, tag: bytes, errors: int, streams: dict[int, int]) -> None:
        self._rank, self._process, self._log = rank, process, log
        self._errors = TerminalWriter(errors, paced=False)
        self._lines = {reader: Lines(tag) for reader in streams}
        self._shown = {r: TerminalWriter(to, paced=bool(tag)) for r, to in streams.items() if to != NONE}
        self._warned: set[str] = set()

    def run(self) -> None:
        """Return when all streams have ended, or the rank has and its children are silent."""
        ended: float | None = None
        read_at, poll = time.monotonic(), select.poll()
        for reader in self._lines:
            poll.register(reader, select.POLLIN)
        while self._lines:
            for reader, _ in poll.poll(200 if any(line.has_partial for line in self._lines.values()) else 1000):
                read_at = time.monotonic()
                data = os.read(reader, READ)
                self._copy(reader, data)
                if not data:
                    poll.unregister(reader)
                    del self._lines[reader]
            self._show_partial()
            now = time.monotonic()
            ended = ended or (now if _has_ended(self._process) else None)
            if ended and (now - read_at > GRACE or now - ended > LINGER):
                break
        for reader in self._lines:
            self._copy(reader, b"")

    def _copy(self, reader: int, data: bytes) -> None:
        if data and self._log != NONE:
            self._write_log(data)
        lines = self._lines[reader]
        self._show(reader, lines.take(data, time.monotonic()) if data else lines.rest())

    def _show_partial(self) -> None:
        for reader, lines in self._lines.items():
            if lines.has_partial and time.monotonic() - lines.since > PARTIAL:
                self._show(reader, lines.rest())

    def _show(self, reader: int, data: bytes) -> None:
        terminal = self._shown.get(reader)
        if terminal is None:
            return
        terminal.write(data)
        if terminal.problem:
            del self._shown[reader]
            self._warn("terminal", f"its output is no longer shown ({terminal.problem})")

    def _write_log(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._log, data) :]
        except OSError as error:
            self._warn("log", f"its log cannot be written ({error.strerror})")

    def _warn(self, what: str, text: str) -> None:
        if what in self._warned:
            return
        self._warned.add(what)
        warning = f"ddl: warning: rank {self._rank}: {text}; the rank continues\n".encode()
        self._errors.write(warning)
        if what != "log" and self._log != NONE:
            self._write_log(warning)


def _has_ended(process: int) -> bool:
    """Return True if `process` has ended; a zombie has."""
    try:
        os.kill(process, 0)
        with open(f"/proc/{process}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2].startswith(b"Z")
    except ProcessLookupError:
        return True
    except OSError:  # a process of another user, or not Linux
        return False


def _blocks(data: bytes) -> list[bytes]:
    """Split `data` into blocks of whole lines, at most BLOCK bytes each.

    A longer line is one block.
    """
    blocks = [b""]
    for line in data.splitlines(keepends=True):
        if blocks[-1] and len(blocks[-1]) + len(line) > BLOCK:
            blocks.append(b"")
        blocks[-1] += line
    return blocks


def _unblocked(descriptor: int) -> int:
    """Return a non-blocking copy of a pipe or terminal; other descriptors are returned as they are.

    The copy is opened anew, so that other processes that share `descriptor` still block.
    """
    try:
        if not (stat.S_ISFIFO(os.fstat(descriptor).st_mode) or os.isatty(descriptor)):
            return descriptor
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return descriptor


def main(arguments: list[str]) -> None:
    """Run a pump with the arguments RANK PROCESS LOG TAG ERRORS READER:TERMINAL ...

    LOG, ERRORS, READER and TERMINAL are descriptors.
    """
    rank, process, log, tag, errors, *streams = arguments
    pairs = (stream.split(":") for stream in streams)
    ends = {int(reader): int(to) for reader, to in pairs}
    Pump(rank, int(process), int(log), tag.encode(), int(errors), ends).run()


if __name__ == "__main__":
    main(sys.argv[1:])

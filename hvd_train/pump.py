"""Carries what one rank prints to its log and to the terminal, in a process of its own that outlives the rank.

The rank may end in any way, close its descriptors, or leave children that hold them: what was written arrives, and nobody
waits. A terminal or a disk that takes nothing stops no rank. Started by `hvd_train.logs` as a file, so that it imports
nothing but the standard library.
"""

from __future__ import annotations

import os
import re
import select
import stat
import sys
import time

READ, BLOCK, LONGEST = 65536, 4000, 65536
"""Bytes: of one read, of one write to a terminal (a launcher passes on up to 4096 at once), and of a line before it is cut."""
PARTIAL = 1.0
"""Seconds after which a line without an end is shown."""
STALL = 5.0
"""Seconds that a terminal may take nothing before the rank goes on without it."""
GRACE, LINGER = 0.3, 5.0
"""Seconds of silence, and of anything at all, after which a child of a rank that has ended is heard no more."""
LEFT_OUT = b"\nddl: output is left out here: nobody read it; the log of the rank has it\n"
NONE = -1

_LINE = re.compile(rb"[^\r\n]*\r?\n|[^\r\n]+\r")
_WHOLE = re.compile(rb".*(?:\n|\r(?!\n|\Z))", re.DOTALL)


class Lines:
    """Puts `tag` before every line of a stream; a line ends with \\n or, in a progress bar, with \\r."""

    def __init__(self, tag: bytes) -> None:
        self._tag = tag
        self._part = b""
        self.since = 0.0
        """When the line that has no end yet was begun."""

    def take(self, data: bytes, now: float) -> bytes:
        """The whole lines that `data` completes; all of it where there is no tag."""
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
    def waits(self) -> bool:
        return bool(self._part)

    def rest(self) -> bytes:
        """The line that has no end, with one, so that another rank's begins on a line of its own."""
        part, self._part = self._part, b""
        return self._tag + part + (b"" if part.endswith(b"\r") else b"\n") if part else b""


class Terminal:
    """A descriptor that somebody reads, or has read once."""

    def __init__(self, descriptor: int, paced: bool) -> None:
        self._descriptor = _unblocked(descriptor)
        self._paced = paced
        self._takes = True
        self._left_out = False
        self.problem = ""

    def write(self, data: bytes) -> None:
        """Write all of `data`, or leave out what there is no room for within STALL seconds."""
        for block in _blocks(data) if self._paced else [data]:
            while block and not self.problem and self._has_room():
                block = self._missing() + block
                block = block[self._write(block[:BLOCK]) :]
            if self._paced:
                time.sleep(0.001)  # the launcher reads whole lines, and what another rank prints comes between them

    def _has_room(self) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        self._takes = bool(poll.poll(STALL * 1000 if self._takes else 0))
        self._left_out = self._left_out or not self._takes
        return self._takes

    def _missing(self) -> bytes:
        left_out, self._left_out = self._left_out, False
        return LEFT_OUT if left_out else b""

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
    """`streams` maps the descriptor to read to that of the terminal, NONE for a stream that is not shown.

    `process` is the rank's.
    """

    def __init__(self, rank: str, process: int, log: int, tag: bytes, errors: int, streams: dict[int, int]) -> None:
        self._rank, self._process, self._log = rank, process, log
        self._errors = Terminal(errors, paced=False)
        self._lines = {reader: Lines(tag) for reader in streams}
        self._shown = {r: Terminal(to, paced=bool(tag)) for r, to in streams.items() if to != NONE}
        self._warned: set[str] = set()

    def run(self) -> None:
        """Return when all streams have ended, or when the rank has and nothing comes any more."""
        gone: float | None = None
        heard, poll = time.monotonic(), select.poll()
        for reader in self._lines:
            poll.register(reader, select.POLLIN)
        while self._lines:
            for reader, _ in poll.poll(200 if any(line.waits for line in self._lines.values()) else 1000):
                heard = time.monotonic()
                data = os.read(reader, READ)
                self._carry(reader, data)
                if not data:
                    poll.unregister(reader)
                    del self._lines[reader]
            self._show_partial()
            now = time.monotonic()
            gone = gone or (now if _ended(self._process) else None)
            if gone and (now - heard > GRACE or now - gone > LINGER):
                break
        for reader in self._lines:
            self._carry(reader, b"")

    def _carry(self, reader: int, data: bytes) -> None:
        if data and self._log != NONE:
            self._write_log(data)
        lines = self._lines[reader]
        self._show(reader, lines.take(data, time.monotonic()) if data else lines.rest())

    def _show_partial(self) -> None:
        for reader, lines in self._lines.items():
            if lines.waits and time.monotonic() - lines.since > PARTIAL:
                self._show(reader, lines.rest())

    def _show(self, reader: int, data: bytes) -> None:
        terminal = self._shown.get(reader)
        if terminal is None:
            return
        terminal.write(data)
        if terminal.problem:
            del self._shown[reader]
            self._warn("terminal", f"its output is shown no more ({terminal.problem})")

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
        warning = f"ddl: warning: rank {self._rank}: {text}; it goes on\n".encode()
        self._errors.write(warning)
        if what != "log" and self._log != NONE:
            self._write_log(warning)


def _ended(process: int) -> bool:
    """Whether `process` has ended, though nobody may have asked for its code yet."""
    try:
        os.kill(process, 0)
        with open(f"/proc/{process}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2].startswith(b"Z")
    except ProcessLookupError:
        return True
    except OSError:  # a process of another user's, or no Linux
        return False


def _blocks(data: bytes) -> list[bytes]:
    """Whole lines, as many as fit into a block; a longer line is a block of its own."""
    blocks = [b""]
    for line in data.splitlines(keepends=True):
        if blocks[-1] and len(blocks[-1]) + len(line) > BLOCK:
            blocks.append(b"")
        blocks[-1] += line
    return blocks


def _unblocked(descriptor: int) -> int:
    """The pipe or terminal `descriptor`, opened again so that not to block concerns nobody else; else as it is."""
    try:
        if not (stat.S_ISFIFO(os.fstat(descriptor).st_mode) or os.isatty(descriptor)):
            return descriptor
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return descriptor


def main(arguments: list[str]) -> None:
    """RANK PROCESS LOG TAG ERRORS READER:TERMINAL ...; the log and all that follow the tag are descriptors."""
    rank, process, log, tag, errors, *streams = arguments
    pairs = (stream.split(":") for stream in streams)
    ends = {int(reader): int(to) for reader, to in pairs}
    Pump(rank, int(process), int(log), tag.encode(), int(errors), ends).run()


if __name__ == "__main__":
    main(sys.argv[1:])

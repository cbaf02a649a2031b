"""Where a rank's output goes: a file of its own, and for some ranks the terminal too."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path


class Output:
    """Descriptors 1 and 2 of this process, C libraries included. `terminal` and `errors` stay what they were at first."""

    def __init__(self) -> None:
        self.terminal = os.dup(1)
        self.errors = os.dup(2)
        self._pumps: list[threading.Thread] = []

    def capture(self, path: Path, *, show: bool) -> None:
        """Send everything to `path` from here on, and if `show` to the terminal as well."""
        path.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._flush()
        for descriptor, before in ((1, self.terminal), (2, self.errors)):
            if show:
                self._tee(descriptor, (log, before))
            else:
                os.dup2(log, descriptor)

    def release(self) -> None:
        """Undo `capture`, once all that was written has arrived."""
        self._flush()
        os.dup2(self.terminal, 1)
        os.dup2(self.errors, 2)
        for pump in self._pumps:
            pump.join(timeout=2)

    def _tee(self, descriptor: int, writers: tuple[int, int]) -> None:
        reader, writer = os.pipe()
        os.dup2(writer, descriptor)
        os.close(writer)
        pump = threading.Thread(target=_pump, args=(reader, writers), daemon=True)
        pump.start()
        self._pumps.append(pump)

    @staticmethod
    def _flush() -> None:
        sys.stdout.flush()
        sys.stderr.flush()


def _pump(reader: int, writers: tuple[int, ...]) -> None:
    while data := os.read(reader, 65536):
        for writer in writers:
            os.write(writer, data)
    os.close(reader)

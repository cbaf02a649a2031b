"""Standard streams of the command: what it says on stderr, and a stdout that is closed, full, or that nobody reads."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any

from hvd_train.names import printable


def say(text: object) -> None:
    """Print the lines of `text` on stderr, each behind `ddl: `, with escapes for what cannot be printed.

    A stderr that takes no more is no reason to stop.
    """
    with contextlib.suppress(OSError):
        for line in str(text).split("\n"):
            print(f"ddl: {printable(line)}", file=sys.stderr, flush=True)


class Unwritable(Exception):
    """Stdout takes no more: it is full, closed, or nobody reads it (`unread`). No OSError, which others would handle."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write the output: {error.strerror}")
        self.unread = isinstance(error, BrokenPipeError)


class _Stdout(io.FileIO):
    """Descriptor 1, which goes nowhere after the first error."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.close(nowhere)
            raise Unwritable(error) from None


def _stdout(encoding: str) -> io.TextIOWrapper:
    buffer = io.BufferedWriter(_Stdout(1, "w", closefd=False))
    return io.TextIOWrapper(buffer, encoding, errors="backslashreplace", line_buffering=True)


def prepare() -> None:
    """Let printing raise Unwritable, show what cannot be encoded by escapes, and open the descriptors that are closed.

    No file or pipe gets the number of a closed descriptor then, and writing to a closed stdout is an error. A stdout that
    a caller put in place of the interpreter's stays.
    """
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _stdout(sys.stdout.encoding if sys.stdout else "utf-8")
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115

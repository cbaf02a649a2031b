"""The standard streams of the command: messages on stderr, and errors of stdout."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any

from hvd_train.text.names import printable


def say(text: object) -> None:
    """Print the lines of `text` on stderr after `ddl: `, and escape unprintable characters.

    Errors of stderr are ignored.
    """
    with contextlib.suppress(OSError):
        for line in str(text).split("\n"):
            print(f"ddl: {printable(line)}", file=sys.stderr, flush=True)


class Unwritable(Exception):
    """Writing to stdout failed: it is full, closed, or a pipe without a reader (`unread`).

    This is not an OSError, because callers handle those as errors of files.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write the output: {error.strerror}")
        self.unread = isinstance(error, BrokenPipeError)


class _Stdout(io.FileIO):
    """Descriptor 1, which becomes /dev/null at the first error."""

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
    """Make `print` raise Unwritable and escape characters that cannot be encoded.

    Open closed descriptors.

    Descriptors 0 to 2 are opened so that no file or pipe gets their number. Writing to a closed
    stdout stays an error. If a caller has replaced `sys.stdout`, it stays.
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

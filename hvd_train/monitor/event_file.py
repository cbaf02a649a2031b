"""Event files of TensorBoard: records of protocol buffers with checksums.

Importing TensorBoard's own writer takes half a second of every run.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterable
from pathlib import Path

VERSION = b"brain.Event:2"
START = 1
"""The status of a session that begins: a reader drops what an earlier one wrote from its step on."""
_POLYNOMIAL = 0x82F63B78
_MASK = 0xA282EAD8
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5
"""Wire types of fields."""


class EventFile:
    """Writes scalars into a new file in `folder`. Every call completes its record on disk."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """`first_step` is the first step that is written; older files may have it too."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(folder / name, "ab")  # noqa: SIM115
        self._write(_event(first_step, _field(3, VERSION)))
        self._write(_event(first_step, _field(7, _number(1, START))))

    def add(self, step: int, scalars: Iterable[tuple[str, float]]) -> None:
        """Write numbers, each with its name."""
        values = (_field(1, _field(1, name.encode()) + _float(2, value)) for name, value in scalars)
        self._write(_event(step, _field(5, b"".join(values))))

    def close(self) -> None:
        self._file.close()

    def _write(self, event: bytes) -> None:
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked(length) + event + _masked(event))
        self._file.flush()


def crc32c(data: bytes) -> int:
    """Return the Castagnoli checksum (RFC 3720)."""
    found = 0xFFFFFFFF
    for byte in data:
        found = _TABLE[(found ^ byte) & 0xFF] ^ (found >> 8)
    return found ^ 0xFFFFFFFF


def _row(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
    return value


_TABLE = [_row(value) for value in range(256)]


def _masked(data: bytes) -> bytes:
    """Return the checksum as event files have it: rotated by 15 bits, and a constant added."""
    found = crc32c(data)
    return struct.pack("<I", ((found >> 15 | found << 17) + _MASK) & 0xFFFFFFFF)


def _event(step: int, what: bytes) -> bytes:
    return _key(1, _DOUBLE) + struct.pack("<d", time.time()) + _number(2, step) + what


def _key(field: int, kind: int) -> bytes:
    return bytes([field << 3 | kind])


def _number(field: int, value: int) -> bytes:
    return _key(field, _VARINT) + _varint(value)


def _float(field: int, value: float) -> bytes:
    return _key(field, _FLOAT) + struct.pack("<f", value)


def _field(field: int, content: bytes) -> bytes:
    return _key(field, _BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Return an integer of at least 0 in groups of seven bits, the lowest first."""
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])

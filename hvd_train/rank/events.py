"""Events that a rank reports on stderr to the command that started it.

Launchers forward stderr on every cluster, so events need no port, no shared file system and no
variable. An event is one JSON object in a frame: START, the length of the text and its CRC-32 in
hexadecimal, the text, END. `split` separates events from the other output of ranks and launchers.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import socket
import time
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hvd_train.text import strict_json

START, END = b"\x1e", b"\x1f"
LIMIT = 3500
"""Most bytes of an event.

It is less than PIPE_BUF, so that a pipe does not mix events of different ranks.
"""

FRAME = 16384
"""Bytes after START within which END arrives, even if a launcher inserts text of another rank."""

_MARKS = re.compile(rb"([\x1e\x1f])")
_HEAD = re.compile(rb"[0-9a-f]{12}")
_BEGINNING = re.compile(rb"[0-9a-f]{0,11}|[0-9a-f]{12}(\{.*)?", re.DOTALL)
_FIELDS = {"event", "host", "machine", "pid", "time"}


@functools.cache
def machine() -> str:
    """Return an identifier of the machine or container in which a pid is unique.

    Hostnames may be shared.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname()
    return hashlib.sha256(f"{boot} {space}".encode()).hexdigest()[:12]


def emit(descriptor: int, event: str, **fields: Any) -> None:
    """Write one event to the file `descriptor`.

    A long `traceback` or `message` loses its beginning.
    """
    where = {"host": socket.gethostname(), "machine": machine(), "pid": os.getpid()}
    record = {"event": event, **where, "time": time.time(), **fields}
    line = _encode(record)
    for key in ("traceback", "message"):
        while len(line) > LIMIT and len(record.get(key, "")) > 100:
            record[key] = "..." + record[key][len(record[key]) // 4 :]
            line = _encode(record)
    os.write(descriptor, line)


def _encode(record: dict[str, Any]) -> bytes:
    text = strict_json.dumps(record).encode()
    return START + b"%04x%08x" % (len(text), zlib.crc32(text)) + text + END + b"\n"


def split(data: bytes) -> tuple[list[dict[str, Any]], bytes, bytes]:
    """Split `data` into events, other bytes, and the beginning of an incomplete frame.

    A launcher may cut a frame in two and insert text or a frame of another rank, so frames nest. A
    frame at the end of `data` is incomplete, because its line break may follow.
    """
    found: list[dict[str, Any]] = []
    levels = [bytearray()]  # text, then open frames
    tokens = _MARKS.split(data)
    for index, token in enumerate(tokens):
        if token == START:
            levels.append(bytearray())
        elif token == END and len(levels) > 1:
            body, after = levels.pop(), tokens[index + 1]
            event, inserted = _decode(bytes(body))
            if event is None:
                levels[-1] += START + body + END
            elif index + 2 == len(tokens) and after in {b"", b"\r"}:
                levels.append(body + END + after)
                break
            else:
                found.append(event)
                levels[-1] += inserted
                tokens[index + 1] = _rest_of_line(after)
        else:
            levels[-1] += token
    return found, *_unfinished(levels)


def _rest_of_line(text: bytes) -> bytes:
    """Return `text` without a line break at its beginning."""
    return text.removeprefix(b"\r").removeprefix(b"\n") if text.startswith((b"\n", b"\r\n")) else text


def _unfinished(levels: list[bytearray]) -> tuple[bytes, bytes]:
    """Return the text, and the open frames that may become events.

    A START that begins no frame is text.
    """
    text = levels[0]
    for depth, body in enumerate(levels[1:], 1):
        if len(body) < FRAME and _BEGINNING.fullmatch(body):
            return bytes(text), b"".join(START + level for level in levels[depth:])
        text += START + body
    return bytes(text), b""


def _decode(body: bytes) -> tuple[dict[str, Any] | None, bytes]:
    """Return the event in a frame, or None, and the bytes that a launcher inserted into it."""
    if not _HEAD.match(body):
        return None, b""
    length, checksum, text = int(body[:4], 16), int(body[4:12], 16), body[12:]
    extra = len(text) - length
    for at in range(length + 1 if extra > 0 else extra + 1):
        if zlib.crc32(text[at + extra :], zlib.crc32(text[:at])) == checksum:
            return _event(text[:at] + text[at + extra :]), text[at : at + extra]
    return None, b""


def _event(text: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.keys() >= _FIELDS else None


def first_failure(events: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the earliest failure by the clocks of the ranks.

    Later failures are most likely its consequences.
    """
    failures = [e for e in events if e["event"] == "failed"]
    return min(failures, key=lambda e: float(e["time"]), default=None)

"""What a rank tells the command that started it, in-band on stderr.

Launchers forward stderr on every cluster, so this channel needs no port, no shared file system and no variable. An event is one
JSON object in a frame: START, the length of the text and its CRC-32 in hexadecimal, the text, END. `split` takes events out of
what ranks and launchers print.
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

from hvd_train import strict_json

START, END = b"\x1e", b"\x1f"
LIMIT = 3500
"""Bytes: under PIPE_BUF, so that the events of different ranks do not run into each other."""

FRAME = 16384
"""Bytes after START within which END arrives, also where a launcher puts text of another rank into a frame."""

_MARKS = re.compile(rb"([\x1e\x1f])")
_HEAD = re.compile(rb"[0-9a-f]{12}")
_BEGINNING = re.compile(rb"[0-9a-f]{0,11}|[0-9a-f]{12}(\{.*)?", re.DOTALL)
_FIELDS = {"event", "host", "machine", "pid", "time"}


@functools.cache
def machine() -> str:
    """Identifies the machine, or the container, in which a process number means one process; hostnames may be shared."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname()
    return hashlib.sha256(f"{boot} {space}".encode()).hexdigest()[:12]


def emit(descriptor: int, event: str, **fields: Any) -> None:
    """Send one event; long text in `fields` loses its beginning."""
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
    """Splits `data` into events, other bytes, and the beginning of a frame that has not arrived whole.

    A launcher may cut a frame in two and put text or a frame of another rank in between: frames nest. A frame at the very end
    of `data` is not whole, because the line break that belongs to it may follow.
    """
    found: list[dict[str, Any]] = []
    levels = [bytearray()]  # text, then frames that are open
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
    """Drops the line break at the beginning of `text`."""
    return text.removeprefix(b"\r").removeprefix(b"\n") if text.startswith((b"\n", b"\r\n")) else text


def _unfinished(levels: list[bytearray]) -> tuple[bytes, bytes]:
    """Text, and the open frames that may still become events; a START that begins no frame is text."""
    text = levels[0]
    for depth, body in enumerate(levels[1:], 1):
        if len(body) < FRAME and _BEGINNING.fullmatch(body):
            return bytes(text), b"".join(START + level for level in levels[depth:])
        text += START + body
    return bytes(text), b""


def _decode(body: bytes) -> tuple[dict[str, Any] | None, bytes]:
    """The event of a frame, and what a launcher put into the frame at one place; None where `body` is no event."""
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
    """The failure that came first by the ranks' clocks: the others are most likely its consequences."""
    failures = [e for e in events if e["event"] == "failed"]
    return min(failures, key=lambda e: float(e["time"]), default=None)

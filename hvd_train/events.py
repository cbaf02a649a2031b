"""What a rank tells the command that started it, in-band on stderr.

Launchers forward stderr on every cluster, so this channel needs no port, no shared file system and no variable. An event
is one JSON object between two control characters; `split` takes them out of what ranks and launchers print.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hvd_train import strict_json

START, END = b"\x1e", b"\x1f"
LIMIT = 3500
"""Bytes: under PIPE_BUF, so that the events of different ranks do not run into each other."""

# A launcher may cut a rank's words in two and put another's event in between: the inner one is taken out first. One whose
# newline may still come has not arrived whole.
_EVENT = re.compile(START + rb"(\{[^\x1e\x1f]*\})" + END + rb"(?:\r?\n|(?!\r?\n?\Z))")


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
    return START + strict_json.dumps(record).encode() + END + b"\n"


def split(data: bytes) -> tuple[list[dict[str, Any]], bytes, bytes]:
    """The events in `data`, the other bytes, and the beginning of an event that has not arrived whole."""
    events = []
    while found := _EVENT.findall(data):
        events += [json.loads(text) for text in found]
        data = _EVENT.sub(b"", data)
    head, mark, tail = data.partition(START)
    return events, head, mark + tail


def first_failure(events: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The failure that came first by the ranks' clocks: the others are most likely its consequences."""
    failures = [e for e in events if e["event"] == "failed"]
    return min(failures, key=lambda e: float(e["time"]), default=None)

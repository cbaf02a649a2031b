"""A Chrome trace of the negotiation and operation of tensors, for ui.perfetto.dev."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from hvd_train.text import strict_json
from hvd_train.torch.requests import Key

_END = b"\n]\n"


class Timeline:
    """A trace file that is complete JSON after every `flush`.

    Each tensor is a process of the trace.

    Another thread may close the file while one writes. Later events are dropped.
    """

    def __init__(self, path: str, mark_cycles: bool = False) -> None:
        self._file = Path(path).open("wb")  # noqa: SIM115
        self._start = time.perf_counter()
        self._rows: dict[str, int] = {}
        self._events: list[dict[str, object]] = []
        self._mark_cycles = mark_cycles
        self._file.write(b"[")
        self._first = True
        self._lock = threading.Lock()
        self._row("rounds", start_time_since_epoch_in_micros=time.time_ns() // 1000)
        self.flush()

    def operation(self, key: Key, issued: float, agreed: float, done: float) -> None:
        """Record that a tensor was negotiated and then moved.

        Times are from `time.perf_counter`.
        """
        self._span(key, f"NEGOTIATE_{key.kind.upper()}", issued, agreed)
        self._span(key, key.kind.upper(), agreed, done)

    def _span(self, key: Key, what: str, start: float, end: float) -> None:
        microseconds = round((start - self._start) * 1e6, 1)
        length = round((end - start) * 1e6, 1)
        self._add({"name": what, "ph": "X", "pid": self._row(str(key)), "tid": 0, "ts": microseconds, "dur": length})

    def cycle(self) -> None:
        """Record the start of a round."""
        if self._mark_cycles:
            now = round((time.perf_counter() - self._start) * 1e6, 1)
            self._add({"name": "CYCLE_START", "ph": "i", "pid": 0, "tid": 0, "ts": now, "s": "p"})

    def flush(self) -> None:
        with self._lock:
            self._flush()

    def close(self) -> None:
        with self._lock:
            self._flush()
            self._file.close()

    def _flush(self) -> None:
        if not self._events or self._file.closed:
            return
        if not self._first:
            self._file.seek(self._file.tell() - len(_END))
        events, self._events = self._events, []
        text = ",\n".join(map(strict_json.dumps, events)).encode()
        self._file.write((b"\n" if self._first else b",\n") + text + _END)
        self._file.flush()
        self._first = False

    def _row(self, name: str, **more: int) -> int:
        if name not in self._rows:
            self._rows[name] = len(self._rows)
            self._add({"name": "process_name", "ph": "M", "pid": self._rows[name], "args": {"name": name, **more}})
        return self._rows[name]

    def _add(self, event: dict[str, object]) -> None:
        self._events.append(event)

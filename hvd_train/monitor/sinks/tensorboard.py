"""TensorBoard event files, without TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hvd_train.monitor.base import Record, Sink
from hvd_train.monitor.event_file import EventFile

MOST_CURVES = 64
"""Numbers of a metric of several that are drawn. The others are in metrics.jsonl."""


class TensorBoard(Sink):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, run: Record) -> None:
        self._file = EventFile(self._folder, run["first_step"] + 1)

    def train(self, record: Record) -> None:
        self._write("train", record)

    def evaluation(self, record: Record) -> None:
        self._write("eval", record)

    def close(self, summary: Record) -> None:
        self._file.close()

    def _write(self, kind: str, record: Record) -> None:
        named = ((name, value) for name, value in record.items() if name not in {"step", "epoch"})
        curves = (pair for name, value in named for pair in _numbers(f"{kind}/{name}", value)[:MOST_CURVES])
        self._file.add(record["step"], curves)


def _numbers(name: str, value: Any) -> list[tuple[str, float]]:
    """Return the numbers in a metric: those of lists are called `name[0]`, `name[1]`, ..."""
    if isinstance(value, list):
        return [pair for i, one in enumerate(value) for pair in _numbers(f"{name}[{i}]", one)]
    return [] if value is None else [(name, value)]


def create(folder: Path) -> TensorBoard:
    return TensorBoard(folder / "tensorboard")

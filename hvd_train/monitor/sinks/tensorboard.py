"""TensorBoard event files, without TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.utils.tensorboard.writer import SummaryWriter

from hvd_train.monitor.base import Record, Sink

MOST_CURVES = 64
"""Numbers of a metric of several that are drawn. The others are in metrics.jsonl."""


class TensorBoard(Sink):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, run: Record) -> None:
        self._writer = SummaryWriter(str(self._folder), purge_step=run["first_step"] + 1)  # type: ignore[no-untyped-call]

    def train(self, record: Record) -> None:
        self._write("train", record)

    def evaluation(self, record: Record) -> None:
        self._write("eval", record)

    def close(self, summary: Record) -> None:
        self.abandon()

    def abandon(self) -> None:
        self._writer.close()  # type: ignore[no-untyped-call]

    def _write(self, kind: str, record: Record) -> None:
        for name, value in record.items():
            if name not in {"step", "epoch"}:
                for label, number in _numbers(f"{kind}/{name}", value)[:MOST_CURVES]:
                    self._writer.add_scalar(label, number, record["step"])  # type: ignore[no-untyped-call]


def _numbers(name: str, value: Any) -> list[tuple[str, float]]:
    """Return the numbers in a metric: those of lists are called `name[0]`, `name[1]`, ..."""
    if isinstance(value, list):
        return [pair for i, one in enumerate(value) for pair in _numbers(f"{name}[{i}]", one)]
    return [] if value is None else [(name, value)]


def create(folder: Path) -> TensorBoard:
    return TensorBoard(folder / "tensorboard")

"""TensorBoard events, without TensorFlow."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard.writer import SummaryWriter

from hvd_train.monitor.base import Record, Sink


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
        self._writer.close()  # type: ignore[no-untyped-call]

    def _write(self, kind: str, record: Record) -> None:
        for name, value in record.items():
            if name not in {"step", "epoch"}:
                self._writer.add_scalar(f"{kind}/{name}", value, record["step"])  # type: ignore[no-untyped-call]


def create(folder: Path) -> TensorBoard:
    return TensorBoard(folder / "tensorboard")

"""metrics.jsonl, one JSON object for each record, and progress.json, the number of steps."""

from __future__ import annotations

import json
from pathlib import Path

from hvd_train.monitor.base import Record, Sink
from hvd_train.text import strict_json


class JsonLines(Sink):
    """Appends to a file.

    A resumed run first drops the records after `first_step`, since it makes them again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self, run: Record) -> None:
        progress = {"first_step": run["first_step"], "total_steps": run["total_steps"]}
        (self._path.parent / "progress.json").write_text(strict_json.dumps(progress) + "\n", encoding="utf-8")
        kept = [line for line in self._lines() if json.loads(line)["step"] <= run["first_step"]]
        # A new file: a program that follows the old one sees that lines were dropped.
        draft = self._path.with_name(f".{self._path.name}")
        draft.write_text("".join(kept), encoding="utf-8")
        draft.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8", buffering=1)

    def train(self, record: Record) -> None:
        self._write("train", record)

    def evaluation(self, record: Record) -> None:
        self._write("eval", record)

    def close(self, summary: Record) -> None:
        self.abandon()

    def abandon(self) -> None:
        self._file.close()

    def _lines(self) -> list[str]:
        whole = self._path.read_text(encoding="utf-8").splitlines(keepends=True) if self._path.exists() else []
        return [line for line in whole if line.endswith("\n")]

    def _write(self, kind: str, record: Record) -> None:
        self._file.write(strict_json.dumps({"kind": kind, **record}) + "\n")


def create(folder: Path) -> JsonLines:
    return JsonLines(folder / "metrics.jsonl")

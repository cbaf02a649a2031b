"""Reads the evaluations of a run while it writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Evaluations:
    """The records of kind `eval` in the metrics.jsonl of `folder`, read as the file grows."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "metrics.jsonl"
        self._inode, self._read = 0, 0
        self.rows: list[dict[str, Any]] = []

    def new(self) -> list[tuple[int, dict[str, Any]]]:
        """Return the evaluations that were written since the last call, with their numbers from 1.

        A run that resumes makes a new file without the records after its checkpoint. All of its
        evaluations are new again.
        """
        try:
            found = self._file.stat()
        except FileNotFoundError:
            return []
        if found.st_ino != self._inode:
            self._inode, self._read, self.rows = found.st_ino, 0, []
        if found.st_size == self._read:
            return []
        with self._file.open("rb") as file:
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")[0] + b"\n"
        if whole == b"\n":
            return []
        self._read += len(whole)
        before = len(self.rows)
        self.rows += [row for row in map(json.loads, whole.splitlines()) if row["kind"] == "eval"]
        return list(enumerate(self.rows[before:], before + 1))

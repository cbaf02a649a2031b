"""Lines of texts that are mapped into memory, by number."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hvd_train.data.memory.mapped import MappedArray
from hvd_train.data.value_checks import Array

CHUNK = 2**24
"""Bytes that are searched for line ends at once."""
BLANK = b" \t\r\n"


@dataclass(frozen=True)
class Text:
    """The bytes of a file."""

    content: MappedArray
    name: str
    """The name of the file in messages."""

    def line(self, start: int) -> bytes:
        """Return the line that begins at byte `start`, with its end."""
        memory, first = self.content.file.memory, self.content.offset
        end = memory.find(b"\n", first + start, first + len(self.content)) + 1 or first + len(self.content)
        return bytes(memory[first + start : end])

    def place(self, start: int) -> str:
        """Return the place of the line that begins at byte `start`, such as `a.jsonl: line 3`."""
        above = sum(int((self.content.values[at:to] == ord("\n")).sum()) for at, to in _chunks(start))
        return f"{self.name}: line {above + 1}"

    def starts(self) -> Array:
        """Return the first byte of each line that is not blank, int64 `(n,)`."""
        values = self.content.values
        ends = [np.flatnonzero(values[at:to] == ord("\n")) + at + 1 for at, to in _chunks(len(values))]
        starts = np.concatenate([np.zeros(1, np.int64), *ends])
        starts = starts[starts < len(values)]
        suspects = np.flatnonzero(np.isin(values[starts], list(BLANK)))
        return np.delete(starts, [i for i in suspects if not self.line(int(starts[i])).strip(BLANK)])


def _chunks(size: int) -> list[tuple[int, int]]:
    return [(at, min(at + CHUNK, size)) for at in range(0, size, CHUNK)]


class TextLines:
    """The lines of `texts`, one after another. It is pickled without any line.

    `starts[i]` is the first byte of line i in its text, and text number k has `counts[k]` lines.
    """

    def __init__(self, texts: Sequence[Text], starts: MappedArray | Array, counts: Sequence[int]) -> None:
        self._made_of = texts, starts, counts
        self._texts, self._ends = texts, np.cumsum(counts).tolist()
        self._starts = starts.values if isinstance(starts, MappedArray) else starts

    def __reduce__(self) -> tuple[Any, ...]:
        return TextLines, self._made_of

    def __len__(self) -> int:
        return len(self._starts)

    def line(self, number: int) -> bytes:
        """Return the bytes of a line, with its end."""
        return self._text(number).line(int(self._starts[number]))

    def place(self, number: int) -> str:
        """Return the place of a line, such as `a.jsonl: line 3`."""
        return self._text(number).place(int(self._starts[number]))

    def _text(self, number: int) -> Text:
        return self._texts[bisect_right(self._ends, number)]

"""The documents of files: plain text, or lines of JSON, each perhaps compressed by gzip."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from hvd_train.data.tokenizing.texts import Document, pieces
from hvd_train.errors import UserError, nearest

GZIP = ".gz"
LINES = {".jsonl", ".ndjson"}
Report = Callable[[int], None]
"""Receives the number of bytes of all files that are read."""


class Inputs(NamedTuple):
    """Files whose documents are read in their order.

    The whole of a text file is a document, and each line of a JSON lines file has one at `key`.
    """

    files: Sequence[Path]
    key: str

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(file.stat().st_size for file in self.files)

    def documents(self, report: Report) -> Iterator[Document]:
        """Yield the documents, each to be read before the next one.

        Raise UserError, which names file and line, for a line that is no JSON or has no text, for text
        that is not UTF-8, and for a damaged gzip file.
        """
        before = 0
        for path in self.files:
            with path.open("rb") as file:
                for document in self._documents(path, file):
                    yield _reported(document, path, file, before, report)
            before += path.stat().st_size

    def texts(self, report: Report) -> Iterator[str]:
        """Yield the pieces of all documents."""
        for document in self.documents(report):
            yield from document

    def _documents(self, path: Path, file: IO[bytes]) -> Iterator[Document]:
        packed = path.suffix == GZIP
        kind = Path(path.stem).suffix if packed else path.suffix
        text: IO[bytes] = gzip.GzipFile(fileobj=file) if packed else file  # type: ignore[assignment]
        if kind in LINES:
            with _whole_gzip(path):
                yield from self._lines(path, text)
        else:
            yield pieces(text, str(path))

    def _lines(self, path: Path, file: IO[bytes]) -> Iterator[Document]:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield [self._text(line, f"{path}:{number}")]

    def _text(self, line: bytes, place: str) -> str:
        """Return the text in a line of JSON."""
        try:
            values = json.loads(line)
        except ValueError as error:
            raise UserError(f"{place}: not JSON: {error}") from error
        if not isinstance(values, dict) or not isinstance(values.get(self.key), str):
            known = nearest(self.key, map(str, values)) if isinstance(values, dict) else ""
            raise UserError(f"{place}: no text at '{self.key}'{known}; --key names it")
        text: str = values[self.key]
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{place}: half of a surrogate pair at character {error.start}, which is no text"
            ) from error
        return text


def _reported(document: Document, path: Path, file: IO[bytes], before: int, report: Report) -> Document:
    with _whole_gzip(path):
        for piece in document:
            yield piece
            report(before + file.tell())


@contextmanager
def _whole_gzip(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file: {error}") from error

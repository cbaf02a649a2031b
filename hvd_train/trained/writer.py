"""The contract of a format of predictions.

A format is a file in `hvd_train/trained/writers` whose name is the ending of its files and whose
`create(file, record)` returns a `Writer`; those of flat rows leave out `record`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Protocol

from hvd_train.config import plugins
from hvd_train.trained.answer import Columns
from hvd_train.trained.predicting.request import FORMATS

Shape = Callable[[dict[str, Any]], dict[str, Any]]
"""Makes an object of JSON from a row of answers."""


class Writer(Protocol):
    """Writes rows to a file, in the order in which they come."""

    def write(self, beside: Mapping[str, Any], answers: Columns) -> None:
        """Write rows: columns of the input, and columns of answers. All calls have equal columns."""

    def close(self) -> None:
        """Write what the format has after its last row; the file stays open."""


def create(name: str, file: BinaryIO, record: Shape) -> Writer:
    """Return the writer of the format `name`. `record` makes JSON of a row of answers (`Answer.record`)."""
    made: Writer = plugins.create(FORMATS, name, file, record)
    return made

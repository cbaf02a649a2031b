"""Answers to the records of a batch, each of which may fail alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hvd_train.trained.serving.batching import Answer, Record

Predict = Callable[[list[Record]], list[dict[str, Any]]]
"""Returns the answers to records; UserError for a wrong record."""


def each(predict: Predict, records: list[Record]) -> list[Answer]:
    """Return the answer to each record, or its exception.

    If `predict` fails for all records together, it is called for each record alone.
    """
    try:
        return list(predict(records))
    except Exception as error:
        return [error] if len(records) == 1 else [each(predict, [record])[0] for record in records]

"""From files to files of predictions, a block of records at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from hvd_train.errors import UserError
from hvd_train.text.display import console, progress
from hvd_train.text.drafts import complete
from hvd_train.trained import writer
from hvd_train.trained.input import Block
from hvd_train.trained.predicting.predictor import Predictor
from hvd_train.trained.predicting.request import Request


def predict(predictor: Predictor, request: Request) -> int:
    """Write the predictions for the inputs of `request`, in their order; return their number.

    Memory does not grow with the inputs. A file appears under its name when it is complete. Raise
    UserError for bad inputs.
    """
    count = 0
    with _output(request.output) as file:
        out = writer.create(request.format, file, predictor.answer.record)
        for block in _watched(predictor.input.blocks(request.inputs, request.keep)):
            answers = predictor.columns(block.records, block.place)
            taken = next((name for name in block.beside if name in answers), None)
            if taken is not None:
                raise UserError(f"--keep: '{taken}' is the name of a column of the predictions")
            out.write(block.beside, answers)
            count += len(block.records)
        out.close()
    return count


@contextmanager
def _output(path: str | None) -> Iterator[BinaryIO]:
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.flush()
        return
    with complete(Path(path)) as file:
        yield file


def _watched(blocks: Iterator[Block]) -> Iterator[Block]:
    """Yield `blocks`; report the number of records on stderr if it is a terminal."""
    with progress(console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task: Any = bar.add_task("predicting", total=None)
        for block in blocks:
            yield block
            bar.update(task, advance=len(block.records))

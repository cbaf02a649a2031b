"""From files to files of predictions, a block of records at a time."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from hvd_train.errors import UserError
from hvd_train.text.display import console, progress
from hvd_train.text.drafts import complete
from hvd_train.trained import writer
from hvd_train.trained.answer import Columns
from hvd_train.trained.input import Block
from hvd_train.trained.predicting.predictor import Predictor
from hvd_train.trained.predicting.request import Request
from hvd_train.trained.writer import Writer

AHEAD = 2
"""Blocks that are read while an earlier one is answered and written."""


def predict(predictor: Predictor, request: Request) -> int:
    """Write the predictions for the inputs of `request`, in their order; return their number.

    Memory does not grow with the inputs. A file appears under its name when it is complete. Raise
    UserError for bad inputs.

    One thread runs the model and one writes. This one reads, so that a signal ends a wait for stdin.
    """
    count = 0
    with (
        _output(request.output) as file,
        ThreadPoolExecutor(1, "ddl-model") as model,
        ThreadPoolExecutor(1, "ddl-write") as disk,
    ):
        out = writer.create(request.format, file, predictor.answer.record)
        pending: deque[Future[None]] = deque()
        for block in _watched(predictor.input.blocks(request.inputs, request.keep)):
            answers = model.submit(predictor.answer, predictor.encode(block.records, block.place))
            pending.append(disk.submit(_write, out, block, answers))
            count += len(block.records)
            while pending and (len(pending) > AHEAD or pending[0].done()):
                pending.popleft().result()
        for written in pending:
            written.result()
        out.close()
    return count


def _write(out: Writer, block: Block, answers: Future[Columns]) -> None:
    columns = answers.result()
    taken = next((name for name in block.beside if name in columns), None)
    if taken is not None:
        raise UserError(f"--keep: '{taken}' is the name of a column of the predictions")
    out.write(block.beside, columns)


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

"""Measure how fast a source delivers batches on this machine."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

from hvd_train.config.schema import DataSection
from hvd_train.data.loading.loader import Loader
from hvd_train.data.nesting import count
from hvd_train.data.survey.samples import entries, fields, nbytes

SECONDS = 2.0


def rate(split: Any, section: DataSection, workers: int, seed: int) -> dict[str, float]:
    """Return samples and bytes per second that batches of `section` arrive with `workers`.

    The start of the workers does not count, nor do batches that they made before this began.
    """
    loader = Loader(workers, section.worker_type, section.prefetch)
    try:
        arriving = loader.load(split, _plan(split, section.batch_size, seed))
        for _ in _until(arriving, 2 * SECONDS, 1 + workers * section.prefetch):
            pass
        samples = size = 0
        begin = time.perf_counter()
        for batch in _until(arriving, SECONDS):
            samples += count(batch)  # a batch of damaged samples is None
            size += sum(map(nbytes, fields(batch).values())) if batch is not None else 0
        seconds = time.perf_counter() - begin
    finally:
        loader.close()
    return {"workers": workers, "samples_per_second": samples / seconds, "bytes_per_second": size / seconds}


def _plan(split: Any, samples: int, seed: int) -> Iterator[Any]:
    """Yield arguments of `split.batch` for one pass after another."""
    while True:
        yield from entries(split, samples, seed)


def _until(batches: Iterator[Any], seconds: float, most: int | None = None) -> Iterator[Any]:
    """Yield at least one of `batches`, and further ones for some seconds."""
    end = time.perf_counter() + seconds
    for batch in itertools.islice(batches, most):
        yield batch
        if time.perf_counter() > end:
            break

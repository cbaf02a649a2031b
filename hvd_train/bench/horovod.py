"""Horovod awake for its own blocks only: its idle thread polls a thousand times a second, on cores that others need."""

from __future__ import annotations

import os

import horovod.torch as hvd

from hvd_train.bench.base import Variant


class OnHorovod(Variant):
    """A variant for which Horovod runs; its constructor calls `resume` before it uses Horovod."""

    process_sets: str | None = None

    def resume(self) -> None:
        os.environ.pop("HOROVOD_DYNAMIC_PROCESS_SETS", None)  # where Horovod remembers how it was started before
        hvd.init(process_sets=self.process_sets)

    def pause(self) -> None:
        hvd.shutdown()

    def close(self) -> None:
        """There is nothing left to close: Horovod is down."""

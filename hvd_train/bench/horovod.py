"""Horovod as a backend of the bench.

Its idle background thread polls a thousand times a second on cores that other variants need, so
Horovod runs during its own blocks only.
"""

from __future__ import annotations

import os

import horovod.torch as hvd

from hvd_train.bench.base import Backend
from hvd_train.comm.communicator import Communicator


class HorovodBackend(Backend):
    """Horovod, started with `process_sets` as `hvd.init` takes them."""

    def __init__(self, process_sets: str | None = None) -> None:
        self._process_sets = process_sets

    def resume(self) -> None:
        os.environ.pop("HOROVOD_DYNAMIC_PROCESS_SETS", None)  # a previous hvd.init leaves its setting here
        hvd.init(process_sets=self._process_sets)

    def pause(self) -> None:
        hvd.shutdown()

    def close(self, comm: Communicator) -> None:
        """Do nothing: `pause` has already shut Horovod down, and `comm` with it."""

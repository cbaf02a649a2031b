"""A run that asks after each evaluation whether to go on, as the trials of a search do.

The variable DDL_GATE (`config.launch.GATE`) names a file, and a search (`cli/tune/gate.py`) writes its answers there:
`{"step": 40, "stop": false}` answers every evaluation up to that of step 40. `stop` ends the run as
a signal does: ranks finish the step, save a checkpoint and exit with the code STOPPED.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from hvd_train.monitor.base import Record, Sink

PATIENCE = 5.0
"""Seconds that an evaluation waits for its answer: more than NFS needs to show a new file."""
POLL = 0.005


class Gate(Sink):
    """Waits after each evaluation for the answer in the file `path`, and calls `stop` if that is to stop.

    After an evaluation without an answer, it does not wait again until an answer arrives: a search
    that died holds up nobody.
    """

    def __init__(self, path: Path, stop: Callable[[], None], patience: float = PATIENCE) -> None:
        self._path, self._stop, self._patience = path, stop, patience
        self._answered = True

    def evaluation(self, record: Record) -> None:
        by = time.monotonic() + (self._patience if self._answered else 0.0)
        while not (self._answer(record["step"]) or time.monotonic() >= by):
            time.sleep(POLL)

    def _answer(self, step: int) -> bool:
        """Return True if the file answers the evaluation of `step`, and obey the answer."""
        try:
            answer = json.loads(self._path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            answer = {"step": -1, "stop": False}
        if answer["stop"]:
            self._stop()
        self._answered = answer["stop"] or answer["step"] >= step
        return self._answered

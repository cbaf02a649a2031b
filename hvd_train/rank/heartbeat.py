"""A thread that reports the position of its rank, and ends the rank when the command is gone.

On SIGUSR2 a rank writes the stacks of all its threads into memory, from which `ddl stack` reads
them. The command asks for heartbeats by a variable. Ranks of a command line that was pasted from
`--dry-run` send none.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from typing import Protocol

from hvd_train.errors import ExitCode
from hvd_train.rank import events, segments
from hvd_train.text.frames import where

BEAT = "OMPI_DDL_BEAT"
"""Variable with the seconds between two heartbeats.

Open MPI forwards variables with this prefix to every host. Other launchers forward all variables.
"""

STACK = "ddl-stack"
"""Name of the memory file that receives stacks."""


class RankActivity(Protocol):
    """What `rank` is doing (`compute.activity.Activity`)."""

    rank: int
    step: int | None
    phase: str | None
    turn: int | None


class Heartbeat:
    """Reports `activity` to the file `descriptor` at intervals, until `stop`.

    Without a command that asks for heartbeats, it does nothing. A heartbeat costs the main thread
    some microseconds of the interpreter's lock.
    """

    def __init__(self, descriptor: int, activity: RankActivity) -> None:
        self._descriptor, self._activity = descriptor, activity
        self._parent = os.getppid()
        self._main = threading.main_thread().ident
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        seconds = float(os.environ.get(BEAT) or 0)
        if seconds:
            self._stacks = os.memfd_create(STACK)
            faulthandler.register(signal.SIGUSR2, file=self._stacks, all_threads=True)
            self._thread = threading.Thread(target=self._beat, args=(seconds,), name="heartbeat", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop the thread and return once it has ended."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=2)

    def _beat(self, seconds: float) -> None:
        orphaned = False
        while not orphaned:
            try:
                events.emit(self._descriptor, "beat", rank=self._activity.rank, parent=self._parent, **self._now())
            except BrokenPipeError:
                orphaned = True
            except OSError:  # a script may close descriptors of ddl
                return
            if self._stopped.wait(seconds):
                return
            orphaned = orphaned or os.getppid() != self._parent
        segments.remove_own()  # nobody else is left to do it
        os._exit(ExitCode.FAILURE)

    def _now(self) -> dict[str, object]:
        activity = self._activity
        frame = sys._current_frames().get(self._main or 0)
        return {"step": activity.step, "phase": activity.phase, "turn": activity.turn, "at": where(frame)}

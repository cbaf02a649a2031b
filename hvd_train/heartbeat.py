"""A thread that says once in a while where its rank is, and ends the rank when nobody is there to hear it.

SIGUSR2 makes a rank write the stacks of all its threads into memory, where `ddl stack` reads them.

The command that watches asks for it in a variable. A command line that was pasted from `--dry-run` has no such listener, and
its ranks are silent.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Protocol

from hvd_train import events
from hvd_train.errors import ExitCode

BEAT = "OMPI_DDL_BEAT"
"""Seconds between two beats. Open MPI takes variables with this prefix to every host; other launchers take all."""

STACK = "ddl-stack"
"""Name of the memory that stacks are written to."""


class Activity(Protocol):
    """What a rank does: the optimizer's step, the phase of it, and a number that grows with each phase."""

    @property
    def activity(self) -> tuple[int, str, int]: ...


class Heartbeat:
    """Beats of `rank` on the file `descriptor`, from now until `stop`; none where no command asked for them.

    A beat costs the main thread nothing but the interpreter's lock for some microseconds.
    """

    def __init__(self, descriptor: int, rank: int) -> None:
        self.rank = rank
        self.of: Activity | None = None
        self._descriptor = descriptor
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
        """Return once the thread is gone: the last to hold tensors must not be a thread that the interpreter ends."""
        self._stopped.set()
        self.of = None
        if self._thread is not None:
            self._thread.join(timeout=2)

    def _beat(self, seconds: float) -> None:
        alone = False
        while not alone:
            try:
                events.emit(self._descriptor, "beat", rank=self.rank, parent=self._parent, **self._now())
            except BrokenPipeError:
                alone = True
            except OSError:  # a script may close what it did not open
                return
            if self._stopped.wait(seconds):
                return
            alone = alone or os.getppid() != self._parent
        os._exit(ExitCode.FAILURE)

    def _now(self) -> dict[str, object]:
        of = self.of
        step, phase, turn = of.activity if of else (None, None, None)
        frame = sys._current_frames().get(self._main or 0)
        return {"step": step, "phase": phase, "turn": turn, "at": where(frame)}


def where(frame: FrameType | None) -> str:
    """Function and line that `frame` is in, and the line of the user's program that led there."""
    inner = _first(frame, lambda file: not file.startswith("<"))
    own = _first(inner, _is_users)
    places = dict.fromkeys(f for f in (inner, own) if f is not None)
    return ", called from ".join(f"{f.f_code.co_name} ({_short(f.f_code.co_filename)}:{f.f_lineno})" for f in places)


def _first(frame: FrameType | None, fits: Callable[[str], bool]) -> FrameType | None:
    """The innermost call at or above `frame` whose file fits."""
    while frame is not None and not fits(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def _is_users(file: str) -> bool:
    return not file.startswith(("<", sys.prefix, sys.base_prefix, _PACKAGE))


_PACKAGE = str(Path(__file__).parent)


def _short(file: str) -> str:
    return "/".join(Path(file).parts[-2:])

"""The process of a rank, in which one run trains, or many one after another."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch

from hvd_train.comm.communicator import Communicator
from hvd_train.compute.activity import Activity
from hvd_train.rank import events, failures, script
from hvd_train.rank.heartbeat import Heartbeat
from hvd_train.rank.logs import Output
from hvd_train.rank.signals import StopRequest


class Process:
    """What a rank has as long as its process lives: output, signals and heartbeat."""

    def __init__(self) -> None:
        self.output = Output()
        self.stop = StopRequest()
        self.stop.listen()
        self.activity = Activity(script.rank())
        self._heartbeat = Heartbeat(self.output.errors, self.activity)

    def begin(self, rank: int) -> None:
        """Report that the engine has started."""
        self.activity.rank = rank
        events.emit(self.output.errors, "started", rank=rank, stop=int(signal.SIGUSR1))

    def end(self, code: int) -> None:
        """Report that this rank ends with the exit code `code`."""
        self._heartbeat.stop()
        events.emit(self.output.errors, "done", rank=self.activity.rank, exit_code=int(code))
        self.output.release()

    def fail(self, error: Exception, engine: Communicator, folder: Path | None = None) -> NoReturn:
        """Report `error`, also in the run `folder`, abort the job and raise the error."""
        failures.report(error, self.activity.rank, self.output.errors, folder)
        if not hasattr(error, "exit_code"):
            traceback.print_exception(error)  # for the log
        self.output.release()
        engine.abort(failures.exit_code(error))
        raise error


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _cudnn() -> tuple[bool, bool]:
    return torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark


def _set_cudnn(value: tuple[bool, bool]) -> None:
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = value


_MODES: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (_deterministic, _set_deterministic),
    (_cudnn, _set_cudnn),
)
"""Reads and sets each mode of torch that code of a run may change."""


@contextmanager
def restored() -> Iterator[None]:
    """Run the block as in a new process, and undo what it changes in the settings of this one.

    They are the working directory, variables, the path of modules and the modes of torch. Random
    generators are not among them: each run seeds them.
    """
    folder, variables, path = os.getcwd(), dict(os.environ), list(sys.path)
    modes = [read() for read, _ in _MODES]
    try:
        yield
    finally:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(variables)
        sys.path[:] = path
        for (read, write), before in zip(_MODES, modes, strict=True):
            if read() != before:  # some imports of the writers take seconds
                write(before)
        if "torch._dynamo" in sys.modules:  # else it would soon compile no more functions
            torch._dynamo.reset()

"""The process of a rank, in which one run trains, or many one after another."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

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


@contextmanager
def restored() -> Iterator[None]:
    """Run the block as in a new process, and undo what it changes in the settings of this one.

    They are the working directory, variables, the path of modules and the modes of torch. Random
    generators are not among them: each run seeds them.
    """
    folder, variables, path = os.getcwd(), dict(os.environ), list(sys.path)
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    is_strict, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    precision, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn
    of_cudnn = cudnn.deterministic, cudnn.benchmark
    try:
        yield
    finally:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(variables)
        sys.path[:] = path
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(is_strict, warn_only=warns)
        torch.set_float32_matmul_precision(precision)
        cudnn.deterministic, cudnn.benchmark = of_cudnn
        if "torch._dynamo" in sys.modules:  # else it would soon compile no more functions
            torch._dynamo.reset()

"""Run a user's script as one rank, as Python would, and report how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from hvd_train.compute.activity import Activity
from hvd_train.errors import ExitCode
from hvd_train.rank import events, failures, horovod_import, main_module, script_options
from hvd_train.rank.heartbeat import Heartbeat
from hvd_train.rank.logs import Output
from hvd_train.rank.script_options import ScriptOptions
from hvd_train.text import strict_json

RANK = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "HOROVOD_RANK", "SLURM_PROCID")
SIZE = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "HOROVOD_SIZE", "SLURM_NTASKS")
FINISHED = "finished"


def rank() -> int:
    """Return the number of this rank by the variables of the launcher; 0 without a launcher."""
    return _number(RANK, 0)


def _number(variables: Sequence[str], otherwise: int) -> int:
    return next((int(os.environ[v]) for v in variables if v in os.environ), otherwise)


def run_script(arguments: list[str]) -> None:
    """Run `[OPTION ...] FILE|-m MODULE [ARG ...]` and exit with its code."""
    options, program = script_options.split(arguments)
    _Rank(options, Output()).run(program)


class _Rank:
    def __init__(self, options: ScriptOptions, output: Output) -> None:
        self._options, self._output, self._rank = options, output, rank()
        self._folder = options.output
        self._process, self._began = os.getpid(), time.time()

    def run(self, program: list[str]) -> None:
        self._emit("started")
        heartbeat = Heartbeat(self._output.errors, Activity(self._rank))
        self._capture()
        if self._options.engine:
            horovod_import.install(self._options.engine, say=self._rank == 0)
        end: BaseException | None = None
        try:
            main_module.run(program)
        except BaseException as error:
            end = error
        if os.getpid() != self._process:  # a process that the script forked is not the rank
            raise end or SystemExit
        code = self._exited(end.code if end else None) if isinstance(end, SystemExit | None) else self._failed(end)
        heartbeat.stop()
        sys.exit(code)

    def _capture(self) -> None:
        options, folder = self._options, self._folder
        if folder is not None:
            with contextlib.suppress(OSError):  # a log that cannot be written causes a warning
                folder.mkdir(parents=True, exist_ok=True)
            if self._rank == 0:
                self._emit("folder", path=str(folder))
        show = options.shown is None or self._rank in options.shown
        if folder is not None or not show or options.tag:
            log = folder / "logs" / f"rank-{self._rank}.log" if folder is not None else None
            self._output.capture(log, self._rank, show=show, tag=options.tag)

    def _exited(self, code: object) -> int:
        """Report the end by `sys.exit(code)` and return the exit code.

        `code` is None, a number, or a message for stderr.
        """
        if code is not None and not isinstance(code, int):
            failed = self._fail(_ExitMessage(str(code)))
            print(code, file=sys.stderr)
            return failed
        status = (code or 0) & 0xFF
        self._summarise(f"exit code {status}" if status else FINISHED, status)
        self._emit("done", exit_code=status)
        return status

    def _failed(self, error: BaseException) -> int:
        error = error.with_traceback(_script_traceback(error))
        code = self._fail(error)
        with contextlib.suppress(Exception):  # a hook of the script may fail
            sys.excepthook(type(error), error, error.__traceback__)
        return code

    def _fail(self, error: BaseException) -> int:
        code = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else int(ExitCode.FAILURE)
        with contextlib.suppress(OSError):  # a script may close descriptors of ddl
            failures.report(error, self._rank, self._output.errors, self._folder)
        self._summarise(f"failure: {type(error).__name__}", code)
        return code

    def _summarise(self, ended: str, code: int) -> None:
        """Write summary.json on rank 0."""
        if self._rank or self._folder is None:
            return
        seconds = round(time.time() - self._began, 3)
        record = {"world_size": _number(SIZE, 1), "ended": ended, "exit_code": code, "wall_seconds": seconds}
        with contextlib.suppress(OSError):
            (self._folder / "summary.json").write_text(strict_json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def _emit(self, event: str, **fields: Any) -> None:
        with contextlib.suppress(OSError):
            events.emit(self._output.errors, event, rank=self._rank, **fields)


class _ExitMessage(Exception):
    """The message that a script passed to `sys.exit`."""

    exit_code = ExitCode.FAILURE


def _script_traceback(error: BaseException) -> TracebackType | None:
    """Return the traceback without the frames of ddl that run the script."""
    found = error.__traceback__
    while found is not None and found.tb_frame.f_code.co_filename in _OURS:
        found = found.tb_next
    return found


_OURS = {__file__, main_module.__file__, "<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>"}

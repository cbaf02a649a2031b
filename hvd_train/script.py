"""A rank of a user's own script: run it as Python would, and report how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from hvd_train import events, failures, horovod_import, main_module, script_options, strict_json
from hvd_train.errors import ExitCode
from hvd_train.heartbeat import Heartbeat
from hvd_train.logs import Output
from hvd_train.script_options import Options

RANK = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "HOROVOD_RANK", "SLURM_PROCID")
SIZE = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "HOROVOD_SIZE", "SLURM_NTASKS")
FINISHED = "finished"


def rank() -> int:
    """This rank by what the launcher says; 0 without one."""
    return _number(RANK, 0)


def _number(variables: Sequence[str], otherwise: int) -> int:
    return next((int(os.environ[v]) for v in variables if v in os.environ), otherwise)


def run_script(arguments: list[str]) -> None:
    """Run `[OPTION ...] FILE|-m MODULE [ARG ...]` as the main program, and exit as it does; see `script_options`."""
    options, program = script_options.split(arguments)
    _Rank(options, Output()).run(program)


class _Rank:
    def __init__(self, options: Options, output: Output) -> None:
        self._options, self._output, self._rank = options, output, rank()
        self._folder = options.output
        self._process, self._began = os.getpid(), time.time()

    def run(self, program: list[str]) -> None:
        self._emit("started")
        heartbeat = Heartbeat(self._output.errors, self._rank)
        self._capture()
        if self._options.engine:
            horovod_import.install(self._options.engine, say=self._rank == 0)
        end: BaseException | None = None
        try:
            main_module.run(program)
        except BaseException as error:
            end = error
        if os.getpid() != self._process:  # a process that the script forked, which is not the rank
            raise end or SystemExit
        code = self._exited(end.code if end else None) if isinstance(end, SystemExit | None) else self._failed(end)
        heartbeat.stop()
        sys.exit(code)

    def _capture(self) -> None:
        options, folder = self._options, self._folder
        if folder is not None:
            with contextlib.suppress(OSError):  # the log says so if it cannot be written
                folder.mkdir(parents=True, exist_ok=True)
            if self._rank == 0:
                self._emit("folder", path=str(folder))
        show = options.shown is None or self._rank in options.shown
        if folder is not None or not show or options.tag:
            log = folder / "logs" / f"rank-{self._rank}.log" if folder is not None else None
            self._output.capture(log, self._rank, show=show, tag=options.tag)

    def _exited(self, code: object) -> int:
        """A script may exit with nothing, a number, or words for stderr."""
        if code is not None and not isinstance(code, int):
            failed = self._fail(_Words(str(code)))
            print(code, file=sys.stderr)
            return failed
        status = (code or 0) & 0xFF
        self._summarise(f"exit code {status}" if status else FINISHED, status)
        self._emit("done", exit_code=status)
        return status

    def _failed(self, error: BaseException) -> int:
        error = error.with_traceback(_own(error))
        code = self._fail(error)
        with contextlib.suppress(Exception):  # a script may have a hook of its own
            sys.excepthook(type(error), error, error.__traceback__)
        return code

    def _fail(self, error: BaseException) -> int:
        code = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else int(ExitCode.FAILURE)
        with contextlib.suppress(OSError):  # a script may close what it did not open
            failures.report(error, self._rank, self._output.errors, self._folder)
        self._summarise(f"failure: {type(error).__name__}", code)
        return code

    def _summarise(self, ended: str, code: int) -> None:
        """summary.json, by rank 0."""
        if self._rank or self._folder is None:
            return
        seconds = round(time.time() - self._began, 3)
        record = {"world_size": _number(SIZE, 1), "ended": ended, "exit_code": code, "wall_seconds": seconds}
        with contextlib.suppress(OSError):
            (self._folder / "summary.json").write_text(strict_json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def _emit(self, event: str, **fields: Any) -> None:
        with contextlib.suppress(OSError):
            events.emit(self._output.errors, event, rank=self._rank, **fields)


class _Words(Exception):
    """What a script wrote to stderr by `sys.exit`."""

    exit_code = ExitCode.FAILURE


def _own(error: BaseException) -> TracebackType | None:
    """The traceback from the script's own frames on."""
    found = error.__traceback__
    while found is not None and found.tb_frame.f_code.co_filename in _OURS:
        found = found.tb_next
    return found


_OURS = {__file__, main_module.__file__, "<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>"}

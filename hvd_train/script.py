"""A rank of a user's own script: run it as Python would, and report how it ended."""

from __future__ import annotations

import os
import runpy
import sys

from hvd_train import events, failures, horovod_import
from hvd_train.errors import ExitCode
from hvd_train.heartbeat import Heartbeat

RANK = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "HOROVOD_RANK", "SLURM_PROCID")
ENGINE = "--engine="


def rank() -> int:
    """This rank by what the launcher says; 0 without one."""
    return next((int(os.environ[v]) for v in RANK if v in os.environ), 0)


def run_script(arguments: list[str]) -> None:
    """Run `FILE [ARG ...]` or `-m MODULE [ARG ...]` as the main program; its exit code and exceptions pass through.

    `--engine=NAME` before that says what `import horovod` gives it; without, what Python finds.
    """
    errors = os.dup(2)
    events.emit(errors, "started", rank=rank())
    heartbeat = Heartbeat(errors, rank())
    if arguments[0].startswith(ENGINE):
        horovod_import.install(arguments[0].removeprefix(ENGINE), say=rank() == 0)
        arguments = arguments[1:]
    try:
        _run(arguments)
    except SystemExit as end:
        _ended(errors, rank(), end.code)
        raise
    except BaseException as error:
        failures.report(error, rank(), errors, None)
        sys.exit(ExitCode.FAILURE)
    finally:
        heartbeat.stop()
    events.emit(errors, "done", rank=rank(), exit_code=0)


def _run(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        sys.argv[:] = arguments[1:]
        sys.path[0:0] = [os.getcwd()]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = arguments
        sys.path[0:0] = [os.path.dirname(os.path.abspath(arguments[0]))]
        runpy.run_path(arguments[0], run_name="__main__")


def _ended(errors: int, rank: int, code: object) -> None:
    """A script may exit with nothing, a number, or words for stderr."""
    if code is None or isinstance(code, int):
        events.emit(errors, "done", rank=rank, exit_code=code or 0)
    else:
        failures.report(RuntimeError(str(code)), rank, errors, None)

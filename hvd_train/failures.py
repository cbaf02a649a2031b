"""A rank that cannot go on says so: an event for the command, a file for the run folder."""

from __future__ import annotations

import contextlib
import socket
import time
import traceback
from pathlib import Path
from typing import Any

from hvd_train import events, strict_json
from hvd_train.errors import ExitCode


def exit_code(error: BaseException) -> ExitCode:
    """The code that a rank which ends with `error` exits with."""
    return getattr(error, "exit_code", ExitCode.FAILURE)


def describe(error: BaseException, rank: int) -> dict[str, Any]:
    """What is worth knowing of an exception; one with an exit code of its own speaks for itself, without traceback."""
    known = hasattr(error, "exit_code")
    return {
        "rank": rank,
        "exit_code": int(exit_code(error)),
        "lost": getattr(error, "lost", None),
        "message": str(error) if known else f"{type(error).__name__}: {error}",
        "traceback": "" if known else "".join(traceback.format_exception(error)),
    }


def report(error: BaseException, rank: int, descriptor: int, folder: Path | None) -> None:
    """Send the event, and write `errors/rank-N.json` where there is a run folder."""
    record = describe(error, rank)
    events.emit(descriptor, "failed", **record)
    if folder is not None:
        path = folder / "errors" / f"rank-{rank}.json"
        whole = {**record, "host": socket.gethostname(), "time": time.time()}
        with contextlib.suppress(OSError):  # a full disk is not the cause
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(strict_json.dumps(whole, indent=1) + "\n", encoding="utf-8")

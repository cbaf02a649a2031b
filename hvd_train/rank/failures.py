"""Report the failure of a rank: by an event to the command, and in a file of the run folder."""

from __future__ import annotations

import contextlib
import socket
import time
import traceback
from pathlib import Path
from typing import Any

from hvd_train.errors import ExitCode
from hvd_train.rank import events
from hvd_train.text import strict_json


def exit_code(error: BaseException) -> ExitCode:
    """Return the exit code of a rank that ends with `error`."""
    return getattr(error, "exit_code", ExitCode.FAILURE)


def describe(error: BaseException, rank: int) -> dict[str, Any]:
    """Return the fields of a "failed" event.

    An exception with an `exit_code` explains itself and has no traceback.
    """
    known = hasattr(error, "exit_code")
    return {
        "rank": rank,
        "exit_code": int(exit_code(error)),
        "lost": getattr(error, "lost", None),
        "message": str(error) if known else f"{type(error).__name__}: {error}",
        "traceback": "" if known else "".join(traceback.format_exception(error)),
    }


def report(error: BaseException, rank: int, descriptor: int, folder: Path | None) -> None:
    """Report the event on `descriptor`, and write `errors/rank-N.json` if there is a run folder."""
    events.emit(descriptor, "failed", **describe(error, rank))
    if folder is not None:
        save(error, rank, folder)


def save(error: BaseException, rank: int, folder: Path) -> None:
    """Write `errors/rank-N.json` in the run `folder`."""
    path = folder / "errors" / f"rank-{rank}.json"
    whole = {**describe(error, rank), "host": socket.gethostname(), "time": time.time()}
    with contextlib.suppress(OSError):  # a full disk is not the cause
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(strict_json.dumps(whole, indent=1) + "\n", encoding="utf-8")

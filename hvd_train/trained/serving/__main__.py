"""Serve a run. Usage: `python -m hvd_train.trained.serving SETTINGS` (`settings.py`)."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from hvd_train.errors import ExitCode, UserError
from hvd_train.trained.serving.settings import Settings


def main() -> None:
    """Serve the run of the settings in argv.

    Until the model is loaded, no request has been accepted, and a signal ends the process at once.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    from hvd_train.trained.serving.process import serve

    try:
        serve(Settings.from_text(sys.argv[1]))
    except UserError as error:
        print(f"ddl: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(ExitCode.OK)


if __name__ == "__main__":
    main()

"""What a worker process reports that cannot make a batch, and what a rank makes of it."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from hvd_train.errors import ExitCode

UNKNOWN = -1
"""Stands for the position of a sample that nobody knows."""


class LoadingError(Exception):
    """A worker failed: by an exception of the user's code, a lack of memory, or its death.

    The text is the whole message.
    """

    exit_code = ExitCode.FAILURE


@dataclass(frozen=True)
class Failure:
    """Why a batch could not be made. `error` explains itself; without one, `trace` is a traceback."""

    error: Exception | None
    trace: str
    sample: int
    """The position of the sample; `UNKNOWN` if nobody knows it."""

    def exception(self, name: str) -> Exception:
        """Return the exception to raise on the rank. `name` is the one of the data in messages."""
        where = f"{name}[{self.sample}]" if self.sample != UNKNOWN else f"a batch of {name}"
        return self.error or LoadingError(f"{self.trace}data: a worker process raised this while it made {where}")


def failure(error: Exception, sample: int) -> Failure:
    """Return the report of `error`, which is pickled only if it is one of ddl's own."""
    if hasattr(error, "exit_code"):
        return Failure(error, "", sample)
    return Failure(None, "".join(traceback.format_exception(type(error), error, error.__traceback__)), sample)

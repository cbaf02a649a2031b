"""Turns errors from the contents of a checkpoint into messages for its user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hvd_train.errors import UserError


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Raise UserError if the checkpoint `where` does not have the form that RunState writes."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"--resume: {where}: {error} is missing; take another checkpoint of the run") from error
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
        text = str(error).partition("\n")[0]
        raise UserError(
            f"--resume: {where}: unexpected contents ({text}); take another checkpoint of the run"
        ) from error

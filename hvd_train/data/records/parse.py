"""JSON as values, with the place of what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hvd_train.errors import UserError

SHOWN = 20
"""Characters of a line that a message quotes."""


class _NoNumber(Exception):
    """NaN, Infinity or -Infinity in JSON."""


def _refuse(word: str) -> None:
    raise _NoNumber(word)


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def parse_line(line: bytes, place: Callable[[], str]) -> dict[str, Any]:
    """Return the object in `line`; UserError, which begins with `place()`, for anything else."""
    record = parse_json(line, place)
    if not isinstance(record, dict):
        raise UserError(
            f"{place()}: found {_found(line.decode('utf-8-sig').strip(), 0)}, expected an object such as "
            '{"text": "...", "label": 1} on each line'
        )
    return record


def parse_json(content: bytes, place: Callable[[], str]) -> Any:
    """Return the value in `content`; UserError, which begins with `place()`, for invalid JSON.

    JSON has no NaN and no infinity.
    """
    try:
        text = content.decode("utf-8-sig").rstrip()
    except UnicodeDecodeError as error:
        found = f"column {error.start + 1}: the byte {content[error.start]:#04x} is not text in UTF-8"
        raise UserError(f"{place()}, {found}; save the file in UTF-8") from None
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{place()}, column {error.colno}: not JSON: {error.msg}, found {_found(text, error.pos)}"
        ) from None
    except _NoNumber as error:
        column = text.find(str(error)) + 1
        raise UserError(f"{place()}, column {column}: found {error}, expected a finite number") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{place()}: cannot be read: {error}") from None


def _found(text: str, position: int) -> str:
    rest = text[position : position + SHOWN]
    return repr(rest) if rest else "the end of the line"

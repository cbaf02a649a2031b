"""Names that a user writes: matched in any case, with - or _, and printed safely."""

from __future__ import annotations

from collections.abc import Iterable

from hvd_train.errors import UserError, nearest


def match(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice equal to `word`, else the only choice that differs in case, or in - for _, only.

    Return None if there is none.

    Raise UserError if several choices differ from `word` so.
    """
    alike = sorted(choice for choice in choices if _folded(choice) == _folded(word))
    if word in alike:
        return word
    if len(alike) > 1:
        raise UserError(f"'{word}' names {' and '.join(alike)}; write the case of one of them")
    return alike[0] if alike else None


def _folded(name: str) -> str:
    return name.casefold().replace("-", "_")


def find(word: str, choices: Iterable[str], complaint: str) -> str:
    """Return the choice that `word` names.

    Raise UserError of `complaint`, the word and the nearest choice if there is none.
    """
    known = list(choices)
    choice = match(word, known)
    if choice is None:
        raise UserError(f"{complaint} '{word}'{nearest(word, known)}")
    return choice


def printable(text: object) -> str:
    """Return `text` with every unprintable character as a Python escape, such as \\n and \\x1b."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))

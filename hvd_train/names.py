"""Names that a user writes: in any case for names that there are, and on a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from hvd_train.errors import UserError, nearest


def match(word: str, choices: Iterable[str]) -> str | None:
    """The choice that is `word`, else the only one that differs from it in case alone; None where there is none.

    UserError where several choices differ in case alone and none of them is `word`.
    """
    alike = sorted(choice for choice in choices if choice.casefold() == word.casefold())
    if word in alike:
        return word
    if len(alike) > 1:
        raise UserError(f"'{word}' names {' and '.join(alike)}; write the case of one of them")
    return alike[0] if alike else None


def find(word: str, choices: Iterable[str], complaint: str) -> str:
    """The choice that `word` names; UserError is `complaint`, the word and the nearest choice where there is none."""
    known = list(choices)
    found = match(word, known)
    if found is None:
        raise UserError(f"{complaint} '{word}'{nearest(word, known)}")
    return found


def printable(text: object) -> str:
    """`text` with each character that cannot be printed written as Python does in a string, such as \\n and \\x1b."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))

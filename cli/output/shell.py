"""Quote words for a shell, so that a printed command can be pasted."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable

_ESCAPES = {"\n": r"\n", "\r": r"\r", "\t": r"\t", "\\": r"\\", "'": r"\'"}


def quoted(word: str) -> str:
    """Quote `word` for a POSIX shell.

    Unprintable characters become escapes in $'...', which bash, zsh and ksh read and a terminal
    shows unchanged.
    """
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(map(_escaped, word)) + "'"


def joined(words: Iterable[str]) -> str:
    """Quote the words and join them to one line."""
    return " ".join(map(quoted, words))


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))

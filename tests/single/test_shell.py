"""Quoted words: what is printed is one printable line, and a shell reads the words from it."""

from __future__ import annotations

import os
import subprocess

import pytest

from cli.output.shell import joined, quoted

WORDS = [
    "",
    "plain",
    "a b",
    "it's",
    '"$HOME"',
    "back\\slash",
    "line\nline's\t\\",
    "\x1b[31mred",
    "\udcff",
    "é\u200bü",
    "\x07f",
]


@pytest.mark.parametrize("word", WORDS)
def test_a_quoted_word_is_printable(word: str) -> None:
    assert quoted(word).isprintable()


def test_a_shell_reads_the_words() -> None:
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {joined(WORDS)}"], capture_output=True, check=True)
    assert done.stdout.split(b"\0")[:-1] == [os.fsencode(word) for word in WORDS]

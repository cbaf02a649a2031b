"""Make arrays once per host, in memory that its ranks share."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from hvd_train.data.memory.mapped import MappedArray, MappedFile
from hvd_train.data.memory.node import Node
from hvd_train.data.value_checks import Array

ALIGNMENT = 64
"""Bytes that the offset of an array is a multiple of: a cache line."""

Make = Callable[[], tuple[Mapping[str, Array], Any]]


def once(node: Node, make: Make) -> tuple[dict[str, MappedArray], Any]:
    """Return the arrays and the facts that `make` returns on the first rank of the host; collective.

    JSON must be able to represent the facts. The arrays lie in a file without a name in memory
    (memfd), which other ranks open by the descriptor of the first one. The kernel frees it with the
    last process, however that ends. A rank that may not open it calls `make` itself.
    """
    file, note = None, None
    if node.rank == 0:
        file, note = _stored(make)
    note = node.gather(note)[0]
    if file is None:
        file, note = _opened(note) or _stored(make)
    node.gather(None)  # the first rank keeps the file until all have opened it
    arrays = {name: file.array(at, np.dtype(kind), tuple(shape)) for name, at, kind, shape in note["layout"]}
    return arrays, note["facts"]


def decoded(node: Node, read: Callable[[], Array]) -> MappedArray:
    """Return the array that `read` returns on the first rank of the host; collective."""
    arrays, _ = once(node, lambda: ({"": read()}, None))
    return arrays[""]


def _stored(make: Make) -> tuple[MappedFile, dict[str, Any]]:
    """Return a file with what `make` returns, and the note from which another rank finds it."""
    arrays, facts = make()
    file: BinaryIO = os.fdopen(os.memfd_create("ddl-data", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "w+b")
    layout = []
    for name, array in arrays.items():
        file.write(bytes(-file.tell() % ALIGNMENT))
        layout.append([name, file.tell(), array.dtype.str, list(array.shape)])
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    file.flush()
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    path = _path(file)
    return MappedFile(path, file), {"path": path, "inode": _inode(file), "layout": layout, "facts": facts}


def _opened(note: dict[str, Any]) -> tuple[MappedFile, dict[str, Any]] | None:
    """Return the file of another rank; None if this rank may not open it."""
    try:
        file = open(note["path"], "rb")  # noqa: SIM115
    except OSError:
        return None
    return (MappedFile(_path(file), file), note) if _inode(file) == note["inode"] else None


def _path(file: BinaryIO) -> str:
    return f"/proc/{os.getpid()}/fd/{file.fileno()}"


def _inode(file: BinaryIO) -> list[int]:
    status = os.fstat(file.fileno())
    return [status.st_dev, status.st_ino]

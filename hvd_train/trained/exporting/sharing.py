"""Files that rank 0 wrote, on every rank. Hosts need not share a disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.state import packing


@contextmanager
def on_every_rank(folder: Path, comm: Communicator) -> Iterator[Path]:
    """Yield a folder with the files of rank 0's `folder`: itself on rank 0, else a copy; collective."""
    sent = _contents(folder) if comm.rank == 0 and comm.size > 1 else {}
    received: dict[str, Tensor] = packing.broadcast(comm, sent) if comm.size > 1 else {}
    if comm.rank == 0:
        yield folder
        return
    with TemporaryDirectory(prefix="ddl-export-") as place:
        for name, content in received.items():
            path = Path(place, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.numpy().tobytes())
        yield Path(place)


def _contents(folder: Path) -> dict[str, Tensor]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): torch.frombuffer(bytearray(f.read_bytes()), dtype=torch.uint8) for f in files}

"""Files that are complete or absent."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hvd_train.errors import UserError


@contextmanager
def complete(path: Path, option: str = "--output") -> Iterator[BinaryIO]:
    """Open a file that gets the name `path` at the end of the block, unless the block raises.

    Raise UserError, which names the `option` that gave the path, if there is such a file.
    """
    if path.exists():
        raise UserError(f"{option}: {path} exists; give another name, or remove it")
    if not path.parent.is_dir():
        raise UserError(f"{option}: no folder '{path.parent}'")
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            yield file  # type: ignore[misc]
            file.flush()
            os.chmod(file.name, 0o666 & ~_umask())
            os.rename(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

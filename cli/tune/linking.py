"""Copies checkpoints that their run may remove, without copying their bytes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def linked(checkpoint: Path, target: Path) -> None:
    """Make the folder `target` with links to the files of `checkpoint`; it is complete once it exists."""
    draft = target.with_name(f".{target.name}.link")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(checkpoint, draft, copy_function=os.link)
    draft.rename(target)

"""NVIDIA GPUs according to the operating system, without CUDA."""

from __future__ import annotations

import os
from pathlib import Path


def devices(folder: Path = Path("/dev")) -> list[Path]:
    """Return the device files of the GPUs. A container has only the files passed into it."""
    return sorted(path for path in folder.glob("nvidia*") if path.name.removeprefix("nvidia").isdigit())


def hidden() -> bool:
    """Return True if CUDA_VISIBLE_DEVICES hides all GPUs from ranks."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}

"""NVIDIA GPUs as the system shows them, without CUDA."""

from __future__ import annotations

import os
from pathlib import Path


def devices(folder: Path = Path("/dev")) -> list[Path]:
    """Their device nodes; in a container, only those that it was given."""
    return sorted(path for path in folder.glob("nvidia*") if path.name.removeprefix("nvidia").isdigit())


def hidden() -> bool:
    """Whether CUDA_VISIBLE_DEVICES hides all of them from ranks."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}

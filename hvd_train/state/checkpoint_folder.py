"""The names of checkpoints in a run folder, and the mark of the best one. It imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hvd_train.text import strict_json

MANIFEST, STATE, BEST = "manifest.json", "state.json", "best.json"
CHECKPOINTS = "checkpoints"
"""The folder in a run folder that holds the checkpoints."""
_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Best:
    """The step of the checkpoint with the best value of a metric so far."""

    step: int
    metric: str
    value: float


def folders(parent: Path) -> list[Path]:
    """Return the checkpoint folders of a run, newest first."""
    return sorted((f for f in parent.glob("step-*") if _NAME.fullmatch(f.name)), key=number, reverse=True)


def folder_name(step: int) -> str:
    """Return the name of the folder of a checkpoint."""
    return f"step-{step:08d}"


def number(folder: Path) -> int:
    """Return the step of a checkpoint or a draft, -1 if the name has none."""
    found = _NAME.search(folder.name)
    return int(found[1]) if found else -1


def run_of(checkpoint: Path) -> Path | None:
    """Return the run folder that holds `checkpoint`, abandoned or not; None if none does."""
    holder = checkpoint.parent.parent if checkpoint.parent.name.startswith("abandoned-") else checkpoint.parent
    return holder.parent if holder.name == CHECKPOINTS else None


def read_best(parent: Path) -> Best | None:
    """Return the mark of the best checkpoint in `parent`; None if there is none, or no such checkpoint."""
    try:
        found = strict_json.loads_exact((parent / BEST).read_bytes())
        best = Best(int(found["step"]), str(found["metric"]), float(found["value"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return best if (parent / folder_name(best.step)).is_dir() else None

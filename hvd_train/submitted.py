"""Run folders that `ddl submit` makes before their run begins."""

from __future__ import annotations

from pathlib import Path

RECORD = "job.json"


def awaits_start(folder: Path) -> bool:
    """Whether `folder` was made for a run that has saved nothing yet, so that it may begin there, or begin again."""
    return (folder / RECORD).is_file() and not any(folder.glob("checkpoints/step-*"))

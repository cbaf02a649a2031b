"""Run folders that `ddl submit` and `ddl run` make before their run begins."""

from __future__ import annotations

from pathlib import Path

RECORD = "job.json"
"""The file that both commands write to a run folder that they make."""


def awaits_start(folder: Path) -> bool:
    """Return True if `folder` was made for a run that has saved no checkpoint yet.

    Such a run may start there, or start again.
    """
    return (folder / RECORD).is_file() and not has_checkpoint(folder)


def has_checkpoint(folder: Path) -> bool:
    """Return True if the run in `folder` has a complete checkpoint.

    It is a checkpoint with its final name, or a draft with a manifest.
    """
    drafts = folder.glob("checkpoints/.step-*.draft/manifest.json")
    return any(folder.glob("checkpoints/step-*")) or any(manifest.stat().st_size for manifest in drafts)


def is_empty(folder: Path) -> bool:
    """Return True if `folder` exists and is empty, as the command makes it."""
    return folder.is_dir() and not any(folder.iterdir())

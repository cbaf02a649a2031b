"""Run folders that `ddl submit` and `ddl run` make before their run begins."""

from __future__ import annotations

from pathlib import Path

RECORD = "job.json"


def awaits_start(folder: Path) -> bool:
    """Whether `folder` was made for a run that has saved nothing yet, so that it may begin there, or begin again."""
    return (folder / RECORD).is_file() and not has_checkpoint(folder)


def has_checkpoint(folder: Path) -> bool:
    """Whether a checkpoint of the run `folder` was written to its end: it has its name then, or as a draft its manifest."""
    drafts = folder.glob("checkpoints/.step-*.draft/manifest.json")
    return any(folder.glob("checkpoints/step-*")) or any(manifest.stat().st_size for manifest in drafts)


def is_empty(folder: Path) -> bool:
    """Whether `folder` holds nothing, as the command claims it for its run."""
    return folder.is_dir() and not any(folder.iterdir())

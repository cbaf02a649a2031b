"""`ranks.json` in a run folder: host and process of every rank, as long as the job runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hvd_train import strict_json
from hvd_train.errors import UserError

NAME = "ranks.json"


def write(folder: Path, ranks: Iterable[dict[str, Any]], ssh: Sequence[str] = ()) -> None:
    """With the number of the SLURM job that they run in, if any, and the words for `ssh` to their hosts."""
    common = {"job": os.environ.get("SLURM_JOB_ID"), "ssh": list(ssh)}
    (folder / NAME).write_text(strict_json.dumps([{**rank, **common} for rank in ranks]) + "\n", encoding="utf-8")


def remove(folder: Path) -> None:
    (folder / NAME).unlink(missing_ok=True)


def read(folder: Path) -> list[dict[str, Any]]:
    """In rank order; UserError where no job runs in `folder`."""
    try:
        found: list[dict[str, Any]] = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{folder}: no job runs in this folder; expected that of a run under way") from None
    return sorted(found, key=lambda rank: int(rank["rank"]))

"""`ranks.json` in a run folder: host and process of every rank while the job runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hvd_train.errors import UserError
from hvd_train.rank import events
from hvd_train.text import strict_json

NAME = "ranks.json"


def write(folder: Path, ranks: Iterable[dict[str, Any]], launcher: int, ssh: Sequence[str] = ()) -> None:
    """Write `ranks`, the process `launcher`, the number of the SLURM job, and the `ssh` arguments for the hosts."""
    by = {"pid": launcher, "machine": events.machine()}
    common = {"job": os.environ.get("SLURM_JOB_ID"), "ssh": list(ssh), "launcher": by}
    (folder / NAME).write_text(strict_json.dumps([{**rank, **common} for rank in ranks]) + "\n", encoding="utf-8")


def remove(folder: Path) -> None:
    (folder / NAME).unlink(missing_ok=True)


def launchers(folder: Path) -> list[dict[str, Any]]:
    """Return process and machine of the launcher of the job in `folder`; empty if none is known."""
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
        return [{"pid": int(rank["launcher"]["pid"]), "machine": rank["launcher"]["machine"]} for rank in found[:1]]
    except (OSError, ValueError, TypeError, LookupError):
        return []


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the ranks in order. UserError if no job runs in `folder`."""
    try:
        found: list[dict[str, Any]] = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(
            f"{folder}: no job runs in this folder; expected the folder of a run that has not ended"
        ) from None
    return sorted(found, key=lambda rank: int(rank["rank"]))

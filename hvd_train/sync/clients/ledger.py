"""A run folder's record of the noisy sums that have been released. A crash does not lose it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from hvd_train.errors import UserError
from hvd_train.text import strict_json

NAME = "privacy.json"
Spent = list[tuple[float, float, int]]
"""(noise, fraction, number of rounds) in the order of the run."""
Processes = dict[str, Spent]
"""The rounds that each start of a run has released, by a name that is unique to the start."""


def write(folder: Path, processes: Processes) -> None:
    """Replace the ledger of `folder` by `processes`, atomically.

    The ledger is on disk when this returns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{NAME}.draft"
    with draft.open("w", encoding="utf-8") as file:
        file.write(strict_json.dumps({"released": processes}, indent=1))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / NAME)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(folder: Path | None, source: Path | None) -> Processes:
    """Return all rounds known to be released, for a run in `folder` that resumes `source`.

    `source` is a run folder or a checkpoint. The rounds include the attempts of the run that
    `--max-restarts` has moved aside. UserError if a ledger is damaged.
    """
    known: Processes = {}
    for file in _files(folder, source):
        for process, spent in _read(file).items():
            if rounds(spent) > rounds(known.get(process, [])):
                known[process] = spent
    return known


def rounds(spent: Spent) -> int:
    return sum(count for _, _, count in spent)


def _files(folder: Path | None, source: Path | None) -> Iterator[Path]:
    if source is not None:
        yield (source.parent.parent if source.parent.name == "checkpoints" else source) / NAME
    if folder is not None:
        yield folder / NAME
        pattern = re.compile(re.escape(folder.name) + r"\.lost-\d+")
        yield from (aside / NAME for aside in folder.parent.glob("*.lost-*") if pattern.fullmatch(aside.name))


def _read(file: Path) -> Processes:
    if not file.exists():
        return {}
    try:
        released = json.loads(file.read_text(encoding="utf-8"))["released"]
        return {
            str(process): [(float(n), float(q), int(count)) for n, q, count in spent]
            for process, spent in released.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{file}: expected the record of noisy rounds that ddl wrote, without which no epsilon holds, got: {error}"
        ) from None

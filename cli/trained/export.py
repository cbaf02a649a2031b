"""The table and the files of an export."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cli.output.columns import columns
from hvd_train.saved.run import CONFIG, DATA, Run
from hvd_train.trained.exporting import card


def save(folder: Path, run: Run, result: Mapping[str, Any], licence: str | None) -> None:
    """Write the card, and what the user of the file needs: the configuration and the preprocessing."""
    for name in (CONFIG, DATA):
        if (run.folder / name).is_file():
            shutil.copyfile(run.folder / name, folder / name)
    card.write(folder, run, result, licence)


def report(result: Mapping[str, Any]) -> str:
    """Return the table of an export and its verdict as text."""
    return f"{columns(card.table(result['rows'], result['compared']))}\n\n{result['verdict']}"

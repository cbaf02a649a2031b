"""The answers of a search to a run that asks after each evaluation whether to go on (`hvd_train/rank/gate.py`)."""

from __future__ import annotations

from pathlib import Path

from hvd_train.text import strict_json

FILE = "gate.json"


def answer(folder: Path, step: int, *, stop: bool) -> None:
    """Answer the evaluation of `step` of the run in `folder`, which reads the file at once or never."""
    draft = folder / f".{FILE}"
    draft.write_text(strict_json.dumps({"step": step, "stop": stop}), encoding="utf-8")
    draft.replace(folder / FILE)


def clear(folder: Path) -> None:
    """Remove the answer to an earlier start of the run in `folder`."""
    (folder / FILE).unlink(missing_ok=True)

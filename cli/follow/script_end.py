"""Complete the summary of a script's run whose rank 0 could not write how it ended."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from hvd_train.errors import ExitCode
from hvd_train.text import strict_json


def note(folder: Path, code: int) -> None:
    """Write to `summary.json` that the run ended with `code`, unless rank 0 has done so."""
    path = folder / "summary.json"
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if summary.get("exit_code") == code:
        return
    summary.update(ended=f"{_cause(code)} (exit code {code})", exit_code=code)
    path.write_text(strict_json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def _cause(code: int) -> str:
    if code == ExitCode.TIMEOUT:
        return "time limit"
    if code - 128 in {int(number) for number in signal.Signals}:
        return signal.Signals(code - 128).name
    return "failure"

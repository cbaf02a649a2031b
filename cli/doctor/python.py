"""Runs code in a separate Python process, because an import may hang, abort or crash."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from typing import Any

SECONDS = 30
"""Timeout of an answer. The first import of torch from a slow network disk takes longest."""


class ProbeFailed(Exception):
    """The process gave no answer. The text is the reason."""


def ask(source: str) -> dict[str, Any]:
    """Run `source` in this Python and return the JSON object that it prints as its last line.

    Raise NoAnswer if it hangs, crashes or fails.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", source],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ProbeFailed(f"no answer within {SECONDS:g} seconds") from None
    if done.returncode:
        raise ProbeFailed(_reason(done.returncode, done.stderr or done.stdout))
    answer: dict[str, Any] = json.loads(done.stdout.rstrip().rpartition("\n")[2])
    return answer


def _reason(code: int, text: str) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    raised: list[str] = re.findall(r"^[\w.]+(?:Error|Exception|Exit|Interrupt)\b.*", text, re.MULTILINE)
    return raised[-1] if raised else text.rstrip().rpartition("\n")[2] or f"exit code {code}"

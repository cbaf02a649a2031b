"""Questions to a Python of its own: what it imports may hang, abort or crash, and that is an answer."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from typing import Any

SECONDS = 30
"""How long an answer may take; the first import of torch from a slow network disk is the longest."""


class NoAnswer(Exception):
    """Why there was none, in a few words."""


def ask(source: str) -> dict[str, Any]:
    """The JSON object that `source` prints as its last line, when it is run by this Python; else NoAnswer."""
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
        raise NoAnswer(f"no answer within {SECONDS:g} seconds") from None
    if done.returncode:
        raise NoAnswer(_reason(done.returncode, done.stderr or done.stdout))
    answer: dict[str, Any] = json.loads(done.stdout.rstrip().rpartition("\n")[2])
    return answer


def _reason(code: int, text: str) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    raised: list[str] = re.findall(r"^[\w.]+(?:Error|Exception|Exit|Interrupt)\b.*", text, re.MULTILINE)
    return raised[-1] if raised else text.rstrip().rpartition("\n")[2] or f"exit code {code}"

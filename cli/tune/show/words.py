"""Figures, values and times as short texts."""

from __future__ import annotations

from typing import Any

from hvd_train.text import strict_json
from hvd_train.text.names import printable


def figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def shortened(value: Any, most: int) -> str:
    """Return a value of YAML in one line of at most `most` characters; empty for None."""
    text = "" if value is None else figure(value) if isinstance(value, float) else _plain(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _plain(value: Any) -> str:
    return printable(value if isinstance(value, str) else strict_json.dumps(value))


def elapsed(seconds: float) -> str:
    """Return a duration as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

"""Write JSON that every reader accepts.

Python's own `json` writes NaN and Infinity, which are not JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

_NON_FINITE = {"nan", "inf", "-inf"}


def dumps(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON for people and tools; NaN and infinite floats become null."""
    return json.dumps(_replaced(value, lambda _: None), indent=indent, allow_nan=False)


def dumps_exact(value: Any, separators: tuple[str, str] | None = None) -> str:
    """Return `value` as JSON from which `loads_exact` makes an equal value.

    Nan becomes `{"float": "nan"}`.
    """
    return json.dumps(_replaced(value, lambda v: {"float": str(v)}), allow_nan=False, separators=separators)


def loads_exact(text: str | bytes) -> Any:
    """Read what `dumps_exact` wrote, or any other JSON."""
    return json.loads(text, object_hook=_restored)


def _replaced(value: Any, replace: Callable[[float], Any]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return replace(value)
    if isinstance(value, dict):
        return {k: _replaced(v, replace) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(v, replace) for v in value]
    return value


def _restored(value: dict[str, Any]) -> Any:
    return float(value["float"]) if value.keys() == {"float"} and value["float"] in _NON_FINITE else value

"""What the episodes of an agent say of its returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cli.runs.statistics import interval


def with_interval(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of an evaluation with the interval of the interquartile mean, if it is of episodes."""
    if result["kind"] != "episodes":
        return dict(result)
    low, high = interval([[episode["return"] for episode in result["played"]]])
    return {**result, "metrics": {**result["metrics"], "return_iqm_low": low, "return_iqm_high": high}}

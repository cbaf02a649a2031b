"""Comparison of results of evaluations."""

from __future__ import annotations

import math
from typing import Any

OF_RANKS = {"ranks", "threads", "seconds", "samples_per_second"}
"""Entries of a result that depend on the ranks."""


def assert_close(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    """Compare nestings: floats to an absolute and relative `tolerance`, all else exactly."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_close(found[key], expected[key], tolerance)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, tolerance)
    elif not isinstance(expected, float) or not isinstance(found, float):
        assert found == expected
    else:
        both_unknown = math.isnan(found) and math.isnan(expected)
        assert both_unknown or math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance)


def measured(result: dict[str, Any]) -> dict[str, Any]:
    """Return what does not depend on the ranks and on time."""
    return {key: value for key, value in result.items() if key not in OF_RANKS}

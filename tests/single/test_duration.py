"""Durations as users write them."""

from __future__ import annotations

from typing import Any

import pytest

from cli.slurm.duration import for_slurm


@pytest.mark.parametrize(
    ("written", "slurm"),
    [
        (90, 90), ("90", "90"), ("1:30", "1:30"), ("1:30:00", "1:30:00"), ("1-12", "1-12"), ("2-00:00:05", "2-00:00:05"),
        ("1h", "01:00:00"), ("30m", "00:30:00"), ("1d", "1-00:00:00"), ("90s", "00:01:30"), ("1h30m", "01:30:00"),
        ("1d 2h", "1-02:00:00"), ("36h", "1-12:00:00"), ("1.5h", "01:30:00"), ("2 days", "2-00:00:00"),
        ("1 hour 5 min", "01:05:00"), (None, None),
    ],
)  # fmt: skip
def test_what_slurm_is_told(written: Any, slurm: Any) -> None:
    assert for_slurm(written) == slurm


@pytest.mark.parametrize("written", ["", "soon", "h", "1x", "1m1h", "1h1h", "1h30", "-1h", "0h", "1h;x", "1M"])
def test_what_is_no_length_of_time(written: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        for_slurm(written)

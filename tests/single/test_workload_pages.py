"""The tables of benchmarks/workloads, and which of its runs are repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.workloads import pages
from benchmarks.workloads.__main__ import finished, read


def row(variant: str, seed: int, seconds: float, rmse: float) -> dict[str, Any]:
    sizes = {"pss_mb": 100.0, "rss_mb": 200.0}
    return {
        "key": f"runs: movielens, {variant}, seed {seed}", "part": "runs", "workload": "movielens", "variant": variant,
        "seed": seed, "seconds": seconds, "cpu_seconds": 2 * seconds, **sizes, "steps": 4, "load": 0.5, "day": "2026-12-01",
        "metrics": {"rmse": rmse},
    }  # fmt: skip


def test_ratios_are_medians_of_pairs_of_equal_seeds_and_stand_beside_their_targets() -> None:
    seconds = {"plain": (10.0, 20.0, 30.0), "np=2": (5.0, 30.0, 24.0)}
    rows = [row(kind, seed, of[seed], 0.91 + seed / 100) for kind, of in seconds.items() for seed in range(3)]
    text = pages.page({one["key"]: one for one in rows}, "command")
    assert "| movielens | rmse | <= 0.92 | - | 0.91, 0.92, 0.93 | 0.91, 0.92, 0.93 | - | no (2 of 3) |" in text
    assert "| movielens | - / 4 / 4 | - | 24.0 | 20.0 | 0.80 (0.50 to 1.50) | <= 1 | yes | - / 48.0 / 40.0 |" in text


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (None, False),
        ({"part": "runs"}, True),
        ({"part": "runs", "error": ["x"], "code": 2}, False),
        ({"part": "layouts", "error": ["refused"], "code": 2}, True),
        ({"part": "layouts", "error": ["crashed"], "code": 1}, False),
    ],
)
def test_a_run_that_failed_is_repeated_but_not_a_refusal_of_a_layout(
    found: dict[str, Any] | None, expected: bool
) -> None:
    assert finished(found) is expected


def test_the_last_row_of_a_key_counts(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row("np=2", 0, seconds, 0.9)) + "\n" for seconds in (1.0, 2.0)))
    (only,) = read(file).values()
    assert only["seconds"] == 2.0
    assert read(tmp_path / "none") == {}

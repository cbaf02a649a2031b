"""TensorBoard reads the event files of a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from hvd_train.monitor.sinks.tensorboard import MOST_CURVES, create


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return found


def curve(found: Any, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in found.Scalars(tag)]


def test_tensorboard_reads_numbers_lists_and_what_is_not_finite(tmp_path: Path) -> None:
    sink = create(tmp_path)
    sink.open({"first_step": 0})
    sink.train({"step": 3, "epoch": 1, "loss": 0.5, "lr": 1e-3, "absent": None})
    sink.train({"step": 300, "epoch": 1, "loss": -2.0, "lr": math.inf})
    sink.evaluation({"step": 2**40, "epoch": 1, "accuracy": [[0.25, 1.0]], "äöü": 1, "many": [0.0] * 100})
    sink.close({})
    found = read(tmp_path)
    assert curve(found, "train/loss") == [(3, 0.5), (300, -2.0)]
    assert curve(found, "train/lr") == [(3, pytest.approx(1e-3)), (300, math.inf)]
    assert curve(found, "eval/accuracy[0][1]") == [(2**40, 1.0)]
    assert curve(found, "eval/äöü") == [(2**40, 1.0)]
    tags = found.Tags()["scalars"]
    assert sum(tag.startswith("eval/many") for tag in tags) == MOST_CURVES
    assert not any("epoch" in tag or "absent" in tag for tag in tags)


def test_what_a_resumed_run_repeats_is_shown_once(tmp_path: Path) -> None:
    for first, steps in ((0, range(1, 6)), (3, range(4, 8))):
        sink = create(tmp_path)
        sink.open({"first_step": first})
        for step in steps:
            sink.train({"step": step, "loss": float(first)})
        sink.close({})
    assert curve(read(tmp_path), "train/loss") == [(s, 0.0) for s in (1, 2, 3)] + [(s, 3.0) for s in (4, 5, 6, 7)]

"""The gate at the evaluations of a run that a search may stop."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from cli.tune import gate
from hvd_train.rank.gate import Gate
from hvd_train.rank.signals import StopRequest


def evaluated(folder: Path, step: int, stop: StopRequest, patience: float = 5.0) -> float:
    """Return the seconds that the evaluation of `step` waited."""
    began = time.monotonic()
    Gate(folder / gate.FILE, stop.set, patience).evaluation({"step": step})
    return time.monotonic() - began


def test_an_answered_evaluation_goes_on(tmp_path: Path) -> None:
    stop = StopRequest()
    gate.answer(tmp_path, 20, stop=False)
    assert evaluated(tmp_path, 20, stop) < 1
    assert not stop.is_set()


def test_an_evaluation_waits_for_its_answer_and_obeys_it(tmp_path: Path) -> None:
    stop = StopRequest()
    gate.answer(tmp_path, 10, stop=False)
    timer = threading.Timer(0.2, gate.answer, [tmp_path, 20], {"stop": True})
    timer.start()
    assert 0.15 < evaluated(tmp_path, 20, stop) < 2
    timer.join()
    assert stop.is_set()


def test_a_late_answer_stops_the_run_at_its_next_evaluation(tmp_path: Path) -> None:
    stop = StopRequest()
    gate.answer(tmp_path, 10, stop=True)
    assert evaluated(tmp_path, 20, stop) < 1
    assert stop.is_set()


def test_a_search_that_does_not_answer_holds_up_one_evaluation(tmp_path: Path) -> None:
    stop = StopRequest()
    asked = Gate(tmp_path / gate.FILE, stop.set, patience=0.2)
    waits = []
    for step in (10, 20, 30):
        began = time.monotonic()
        asked.evaluation({"step": step})
        waits.append(time.monotonic() - began)
    assert waits[0] >= 0.2
    assert max(waits[1:]) < 0.1
    gate.answer(tmp_path, 40, stop=False)
    asked.evaluation({"step": 40})
    timer = threading.Timer(0.1, gate.answer, [tmp_path, 50], {"stop": False})
    timer.start()
    began = time.monotonic()
    asked.evaluation({"step": 50})
    timer.join()
    assert time.monotonic() - began > 0.05
    assert not stop.is_set()


def test_the_answer_to_an_earlier_start_is_removed(tmp_path: Path) -> None:
    stop = StopRequest()
    gate.answer(tmp_path, 10, stop=True)
    gate.clear(tmp_path)
    evaluated(tmp_path, 20, stop, patience=0.05)
    assert not stop.is_set()

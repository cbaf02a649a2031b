"""The position of a run in its data, and its length."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hvd_train.config.schema import TrainSection
from hvd_train.training.progress import Length, Progress, length
from hvd_train.training.sampler import Epoch


def epoch(*lengths: int) -> Epoch:
    """Return an epoch in which each rank has the given number of samples and a batch size of 4."""
    return Epoch(torch.arange(lengths[0]), lengths, batch_size=4, accumulate=1)


@pytest.mark.parametrize(
    ("samples", "step"),
    [(0, 0), (7, 0), (8, 1), (15, 1), (16, 2), (17, 3), (99, 3)],
)
def test_a_run_enters_an_epoch_at_the_last_boundary_before_its_position(samples: int, step: int) -> None:
    """Two ranks of 9 and 8 samples take 8, 8 and 1 samples in three steps."""
    progress = Progress(samples_in_epoch=samples, step_in_epoch=50)
    progress.begin(epoch(9, 8))
    assert progress.step_in_epoch == step
    assert progress.samples_in_epoch == min(8 * step, 17)
    assert progress.epoch_is_over == (step == 3)


def test_the_end_of_an_epoch_is_saved_as_the_beginning_of_the_next() -> None:
    progress = Progress(epoch=2)
    progress.begin(epoch(4, 4))
    assert progress.to_save(1.5, 10)["epoch"] == 2
    progress.add_step(8)
    saved = progress.to_save(1.5, 10)
    assert (saved["epoch"], saved["step_in_epoch"], saved["samples_in_epoch"]) == (3, 0, 0)
    assert (saved["step"], saved["samples"], saved["seconds"], saved["bytes_sent"]) == (1, 8, 1.5, 10)
    assert "steps_of_epoch" not in saved
    loaded = Progress()
    loaded.load(saved)
    assert loaded.to_save(1.5, 10) == saved


@pytest.mark.parametrize(
    ("saved", "error"),
    [({"epoch": 1}, "step"), ({"step": "7"}, "progress.step is '7'"), ({"step": 1, "best": []}, "progress.best is")],
)
def test_values_that_are_not_numbers_are_refused(saved: dict[str, Any], error: str) -> None:
    with pytest.raises((KeyError, TypeError), match=error):
        Progress().load(saved)


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"steps": 25}, Length(None, 25, 10)),
        ({"epochs": 3}, Length(3, 30, 10)),
        ({}, Length(10, 100, 10)),
    ],
)
def test_the_length_of_a_run(train: dict[str, int], expected: Length) -> None:
    assert length(TrainSection(**train), 10) == expected


def test_an_epoch_of_another_number_of_steps_counts_as_many_as_the_first() -> None:
    progress, planned = Progress(step=13, epoch=2, step_in_epoch=3), Length(3, 30, 10)
    assert planned.position(progress, 10) == 23
    assert planned.position(progress, 5) == 26
    assert planned.last_step(progress, 5) == 17
    assert Length(None, 30, 10).position(progress, 5) == 13
    assert not planned.is_reached(progress)
    assert planned.is_reached(Progress(epoch=3))

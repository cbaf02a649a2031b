"""Learning-rate schedules."""

import pytest
from pydantic import ValidationError

from hvd_train.config.schema import ScheduleSection
from hvd_train.training.schedule import factor


@pytest.mark.parametrize(
    ("fields", "total", "expected"),
    [
        ({}, 4, [1, 1, 1, 1]),
        ({"warmup_steps": 4}, 6, [0.25, 0.5, 0.75, 1, 1, 1]),
        ({"name": "linear"}, 4, [1, 0.75, 0.5, 0.25]),
        ({"name": "linear", "final": 0.5}, 4, [1, 0.875, 0.75, 0.625]),
        ({"name": "linear", "warmup_steps": 2}, 4, [0.5, 1, 1, 0.5]),
        ({"name": "cosine"}, 4, [1, 0.8535534, 0.5, 0.1464466]),
        ({"name": "cosine", "final": 0.2}, 2, [1, 0.6]),
        ({"name": "step", "every": 2, "factor": 0.5}, 6, [1, 1, 0.5, 0.5, 0.25, 0.25]),
        ({"name": "step", "every": 2, "factor": 0.1, "warmup_steps": 1}, 4, [1, 1, 1, 0.1]),
        ({"warmup": 0.5}, 8, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ({"warmup": 0.3}, 4, [0.5, 1, 1, 1]),  # 1.2 steps are two
        ({"name": "linear", "warmup": 0.5}, 4, [0.5, 1, 1, 0.5]),
        ({"warmup": 0.9}, 1, [1]),
    ],
)
def test_course(fields: dict[str, object], total: int, expected: list[float]) -> None:
    schedule = ScheduleSection.model_validate(fields)
    assert [factor(schedule, step, total) for step in range(total)] == pytest.approx(expected)


def test_a_warmup_is_a_share_or_a_number_of_steps() -> None:
    assert [factor(ScheduleSection(warmup=0.1), step, 20) for step in range(3)] == [0.5, 1, 1]
    with pytest.raises(ValidationError, match="give 'warmup' or 'warmup_steps', not both"):
        ScheduleSection(warmup=0.1, warmup_steps=3)


def test_a_run_longer_than_planned_stays_at_the_end_of_the_course() -> None:
    schedule = ScheduleSection(name="cosine", final=0.1)
    assert factor(schedule, 100, 10) == pytest.approx(0.1)

"""Learning-rate schedules, as pure functions of the step."""

from __future__ import annotations

import math

from hvd_train.config.schema import ScheduleSection


def factor(schedule: ScheduleSection, step: float, total: int) -> float:
    """Return the factor of the base rate at `step` (from 0) of `total`, warm-up included."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    after, span = step - schedule.warmup_steps, max(1, total - schedule.warmup_steps)
    progress = min(1.0, after / span)
    if schedule.name == "cosine":
        return schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * progress)) / 2
    if schedule.name == "linear":
        return schedule.final + (1 - schedule.final) * (1 - progress)
    if schedule.name == "step":
        return schedule.factor ** int(after // schedule.every)
    return 1.0

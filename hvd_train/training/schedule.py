"""Learning-rate schedules, as pure functions of the step."""

from __future__ import annotations

import math

from hvd_train.config.schema import ScheduleSection


def factor(schedule: ScheduleSection, step: float, total: int) -> float:
    """Return the factor of the base rate at `step` (from 0) of `total`, warm-up included."""
    rises = schedule.warmup_steps or math.ceil(schedule.warmup * total)
    if step < rises:
        return (step + 1) / rises
    after, span = step - rises, max(1, total - rises)
    progress = min(1.0, after / span)
    if schedule.name == "cosine":
        return schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * progress)) / 2
    if schedule.name == "linear":
        return schedule.final + (1 - schedule.final) * (1 - progress)
    if schedule.name == "step":
        return schedule.factor ** int(after // schedule.every)
    return 1.0

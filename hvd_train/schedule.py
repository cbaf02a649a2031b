"""Courses of the learning rate, as pure functions of the step."""

from __future__ import annotations

import math

from hvd_train.config import ScheduleSection


def factor(schedule: ScheduleSection, step: float, total: int) -> float:
    """What the base rate is multiplied by at `step` (from 0) of `total`: warm-up first, then the named course."""
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

"""Backup workers: a step ends with the first N of N + b gradients.

No rank waits for the slowest b workers (Chen et al., arXiv 1604.00981). The file of a strategy that
uses them declares the option for the launcher at module level: `ASYNCHRONOUS = "backup_workers"`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from hvd_train.errors import UserError
from hvd_train.sync.base import Context
from hvd_train.sync.servers.client import Reports, ServedWorkers
from hvd_train.sync.servers.roles import Placement, roles
from hvd_train.sync.servers.server import Push, Server


class FirstOfStep(Server):
    """Applies the mean over samples of the first `enough` gradients of a step.

    Late workers continue with the next step. Once `enough` workers have finished, or fewer are
    left, the run ends for the others too.
    """

    def __init__(self, *arguments: Any, enough: int) -> None:
        super().__init__(*arguments)
        self._enough = enough
        self._dropped = 0
        self._arrived: list[Push] = []

    def push(self, push: Push) -> None:
        if push.version == self.version:
            self._arrived.append(push)
        else:
            self._dropped += 1
            self._begin_step(push.worker)

    def settle(self) -> None:
        if self._arrived and len(self._arrived) >= min(self._enough, len(self.roster.working)):
            arrived, self._arrived = self._arrived, []
            self._apply_mean(arrived)
            for push in arrived:
                self._begin_step(push.worker)

    def report(self) -> dict[str, Any]:
        return {**super().report(), "dropped": self._dropped}

    def _apply_mean(self, pushes: list[Push]) -> None:
        """Apply the mean, with the learning rate of the worker that is furthest in the schedule."""
        full = [push for push in pushes if push.gradients]
        samples = sum(push.samples for push in full)
        for push in full:
            torch._foreach_mul_(push.gradients or [], push.samples / samples)
        self.apply(pushes, pushes[0].rate)
        self.version = pushes[0].version + 1

    def _begin_step(self, worker: int) -> None:
        working, living = len(self.roster.working), len(self.roster.living)
        enough = min(self._enough, living)
        over = working < enough or living - working >= enough
        self.answer(worker, over="length" if over else None)


def backup_workers(context: Context, *, backup: int, servers: int, placement: Placement) -> ServedWorkers:
    """Return the strategy of synchronous steps with the first N of N + `backup` workers.

    UserError if N is below 1.
    """
    workers = roles(context.comm.size, servers, placement).workers
    if workers - backup < 1:
        raise UserError(f"sync.backup_workers: {backup} of {workers} workers leave none to wait for; start more (--np)")
    make = partial(FirstOfStep, enough=workers - backup)
    return ServedWorkers(context, servers, placement, make, _dropped)


def _dropped(reports: Reports) -> dict[str, Any]:
    return {"dropped": sum(report["dropped"] for report in reports)}

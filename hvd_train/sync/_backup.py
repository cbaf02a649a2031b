"""Backup workers: a step ends with the first N of N + b gradients, so that the slowest b hold up nobody (arXiv 1604.00981).

For `parameter_server.create`: `BackupWorkers(context, backup=b, servers=k, placement="colocated" | "dedicated")`; UserError where
there are not more workers than backups. Its file says so to the launcher by `ASYNCHRONOUS = "backup_workers"` at module level.
"""

from __future__ import annotations

from typing import Any

import torch

from hvd_train.errors import UserError
from hvd_train.sync._served import Served
from hvd_train.sync._server import Push, Server
from hvd_train.sync._servers import Placement
from hvd_train.sync.base import Context


class FirstOfStep(Server):
    """Applies the mean over samples of the first `enough` gradients of a step; who comes late is sent on to the next one.

    Once enough have finished, or not enough are left, the run is over for the others too.
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
            self._send_on(push.worker)

    def settle(self) -> None:
        if self._arrived and len(self._arrived) >= min(self._enough, len(self.members.working)):
            arrived, self._arrived = self._arrived, []
            self._apply_mean(arrived)
            for push in arrived:
                self._send_on(push.worker)

    def report(self) -> dict[str, Any]:
        return {**super().report(), "dropped": self._dropped}

    def _apply_mean(self, pushes: list[Push]) -> None:
        """The rate is that of the first, who is furthest in the schedule."""
        full = [push for push in pushes if push.gradients]
        samples = sum(push.samples for push in full)
        for push in full:
            torch._foreach_mul_(push.gradients or [], push.samples / samples)
        self.apply(pushes, pushes[0].rate)
        self.version = pushes[0].version + 1

    def _send_on(self, worker: int) -> None:
        working, living = len(self.members.working), len(self.members.living)
        enough = min(self._enough, living)
        over = working < enough or living - working >= enough
        self.answer(worker, over="length" if over else None)


class BackupWorkers(Served):
    """Synchronous steps of the first N of N + `backup` workers (Chen et al., arXiv 1604.00981)."""

    def __init__(self, context: Context, *, backup: int, servers: int, placement: Placement) -> None:
        super().__init__(context, servers, placement)
        workers = self._who.workers
        self._enough = workers - backup
        if self._enough < 1:
            raise UserError(
                f"sync.backup_workers: {backup} of {workers} workers leave none to wait for; start more (--np)"
            )

    def make(self, *arguments: Any) -> Server:
        return FirstOfStep(*arguments, enough=self._enough)

    def summary(self) -> dict[str, Any]:
        return {**super().summary(), "dropped": sum(report["dropped"] for report in self.reports)}

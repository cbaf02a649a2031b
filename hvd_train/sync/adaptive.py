"""As local_sgd, with a period that follows the network's speed and falls with the loss."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hvd_train.options import Annotated, Field, PositiveInt
from hvd_train.sync._rounds import Rounds
from hvd_train.sync.base import Context

WINDOW = 5
"""Merges and steps of which the median counts, so that an evaluation between two of them does not."""


def period(communication: float, computation: float, progress: float, overhead: float, longest: int) -> int:
    """Steps H until the next merge, from 1 to `longest`: ceil(H_0 sqrt(F / F_0)) (AdaComm, Wang and Joshi, arXiv 1810.08313).

    `communication` is the seconds of a merge, `computation` those of a step, and `progress` = F / F_0 the loss now over that
    at the beginning. H_0 is the period at which merges take the share `overhead` of the time that steps take.
    """
    affordable = communication / (overhead * computation)
    return min(max(1, math.ceil(affordable * math.sqrt(progress))), longest)


class Adaptive(Rounds):
    """H local steps, then w <- mean(w_i) and a new H, which every rank computes of what all of them measured.

    A merge takes as long as on the rank that waited least, a step as long as on the slowest. H is 1 until a few merges
    have been timed.
    """

    def __init__(self, context: Context, overhead: float, longest: int) -> None:
        super().__init__(context)
        self._overhead, self._longest = overhead, longest
        self.now: Callable[[], float] = time.perf_counter
        self._next, self._periods = 0, [[0, 1]]
        """The step to merge after; from which step on which period."""
        self._first_loss: float | None = None
        self._merge_seconds: list[float] = []
        """Of the last merges, as all ranks agreed."""
        self._own = torch.zeros(4, dtype=torch.float64)
        """This rank's sum of losses in the round and its samples, its seconds of a step and of the last merge."""
        self._step_seconds: list[float] = []
        self._resumed: float | None = None

    def due(self, step: int) -> bool:
        return step >= self._next

    def on_loss(self, loss: float, samples: int) -> None:
        self._own[:2] += torch.tensor([loss * samples, samples], dtype=torch.float64)

    def on_parameters(self, step: int) -> None:
        if self._resumed is not None:
            self._step_seconds = [*self._step_seconds, self._now() - self._resumed][-WINDOW:]
            self._own[2] = statistics.median(self._step_seconds)
        super().on_parameters(step)
        if self.meets(step):
            self._decide(step)
        self._resumed = self._now()

    def merge(self) -> None:
        self._facts = torch.zeros(self.comm.size, len(self._own), dtype=torch.float64)
        self._facts[self.comm.rank] = self._own
        told = self.comm.all_reduce_async_(self._facts, "sum")
        begin = self._now()
        super().merge()
        self._own[3] = self._now() - begin
        self._own[:2] = 0
        told.wait()

    def _decide(self, step: int) -> None:
        """The period of the round that begins after `step`."""
        if self.merges > 1:
            self._merge_seconds = [*self._merge_seconds, float(self._facts[:, 3].min())][-WINDOW:]
        chosen = self._chosen()
        if chosen != self._periods[-1][1]:
            self._periods.append([step + 1, chosen])
        self._next = step + chosen

    def _chosen(self) -> int:
        loss, samples = self._facts[:, :2].sum(0).tolist()
        computation = float(self._facts[:, 2].max())
        if samples and self._first_loss is None:
            self._first_loss = loss / samples
        if not samples or not computation or len(self._merge_seconds) < WINDOW:
            return 1
        progress = _ratio(loss / samples, self._first_loss)
        return period(statistics.median(self._merge_seconds), computation, progress, self._overhead, self._longest)

    def _now(self) -> float:
        """Seconds, once the GPU has done what it was asked for."""
        if any(t.is_cuda for t in self.flat.tensors):
            torch.cuda.synchronize()
        return self.now()

    def figures(self) -> dict[str, float]:
        return {**super().figures(), "period": self._periods[-1][1]}

    def summary(self) -> dict[str, Any]:
        return {**super().summary(), "periods": self._periods}

    def state_dict(self) -> dict[str, Any]:
        facts = {"next": self._next, "first_loss": self._first_loss}
        return {**super().state_dict(), **facts, "periods": self._periods, "merge_seconds": self._merge_seconds}

    def go_on(self, state: dict[str, Any]) -> None:
        super().go_on(state)
        self._next, self._first_loss = state["next"], state["first_loss"]
        self._periods, self._merge_seconds = state["periods"], state["merge_seconds"]

    def rank_state(self) -> dict[str, Tensor]:
        seconds = torch.tensor(self._step_seconds, dtype=torch.float64)
        return {**super().rank_state(), "own": self._own.clone(), "step_seconds": seconds}

    def go_on_alone(self, state: dict[str, Tensor]) -> None:
        super().go_on_alone(state)
        self._own, self._step_seconds = state["own"], state["step_seconds"].tolist()


def _ratio(loss: float, first: float | None) -> float:
    """Of two losses, where both are positive; a loss that is not tells nothing of how far training has come."""
    return loss / first if first and first > 0 and loss > 0 else 1.0


def create(
    context: Context,
    *,
    overhead: Annotated[float, Field(gt=0), "share of the steps' time that merges may take at the beginning"] = 0.1,
    max_period: Annotated[PositiveInt, "longest period"] = 64,
) -> Adaptive:
    return Adaptive(context, overhead, max_period)

"""Local SGD with a period that follows the speed of the network and falls with the loss."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator, Work
from hvd_train.config.options import Annotated, Field, PositiveInt
from hvd_train.gradients.optimizer import Build, ModelOptimizer
from hvd_train.sync.base import Context, SyncStrategy
from hvd_train.sync.replicas.rounds import Rounds
from hvd_train.sync.scale import OwnMean
from hvd_train.sync.view import View

WINDOW = 5
"""The number of last averages and steps whose median time counts: an evaluation between two of them
does not."""

LOSS, SAMPLES, STEP, AVERAGE = range(4)
"""What a rank measures: its sum of losses in the round, its samples, the seconds of a step and of
the last average."""


def period(communication: float, computation: float, progress: float, overhead: float, longest: int) -> int:
    """Return the steps H until the next average, from 1 to `longest`: ceil(H_0 sqrt(F / F_0)).

    AdaComm (Wang and Joshi, arXiv 1810.08313). `communication` is the seconds of an average,
    `computation` the seconds of a step, and `progress` = F / F_0 the loss divided by the loss at
    the beginning. H_0 is the period at which averages take the share `overhead` of the time that
    steps take.
    """
    affordable = communication / (overhead * computation)
    return min(max(1, math.ceil(affordable * math.sqrt(progress))), longest)


class Schedule(View):
    """When ranks average. The period is 1 until a few averages have been timed."""

    def __init__(self, comm: Communicator, overhead: float, longest: int) -> None:
        super().__init__()
        self._comm, self._overhead, self._longest = comm, overhead, longest
        self._next = 0
        """The step after which ranks average."""
        self._periods = [[0, 1]]
        """Pairs of a step and the period from that step on."""
        self._first_loss: float | None = None
        self._average_seconds: list[float] = []
        """The times of the last averages, equal on all ranks."""
        self._step_seconds: list[float] = []
        self.own = torch.zeros(4, dtype=torch.float64)
        """What this rank measured; see `LOSS`."""
        self._measured = torch.empty(0)
        """What each rank had measured before the last average, a row each."""

    def due(self, step: int) -> bool:
        return step >= self._next

    def time_step(self, seconds: float) -> None:
        self._step_seconds = [*self._step_seconds, seconds][-WINDOW:]
        self.own[STEP] = statistics.median(self._step_seconds)

    def exchange(self) -> Work:
        """Send what this rank measured to all ranks; complete after `wait`."""
        self._measured = torch.zeros(self._comm.size, len(self.own), dtype=torch.float64)
        self._measured[self._comm.rank] = self.own
        return self._comm.all_reduce_async_(self._measured, "sum")

    def end_round(self, seconds: float) -> None:
        """Begin to measure a round, after an average that took `seconds` on this rank."""
        self.own[AVERAGE] = seconds
        self.own[: SAMPLES + 1] = 0

    def choose(self, step: int, averages: int) -> None:
        """Choose the period of the round after `step`, when ranks have averaged `averages` times.

        An average takes as long as on the rank that waited least, a step as long as on the slowest
        rank.
        """
        if averages > 1:
            shortest = float(self._measured[:, AVERAGE].min())
            self._average_seconds = [*self._average_seconds, shortest][-WINDOW:]
        chosen = self._chosen()
        if chosen != self._periods[-1][1]:
            self._periods.append([step + 1, chosen])
        self._next = step + chosen

    def _chosen(self) -> int:
        loss, samples = self._measured[:, : SAMPLES + 1].sum(0).tolist()
        computation = float(self._measured[:, STEP].max())
        if samples and self._first_loss is None:
            self._first_loss = loss / samples
        if not samples or not computation or len(self._average_seconds) < WINDOW:
            return 1
        progress = _ratio(loss / samples, self._first_loss)
        return period(statistics.median(self._average_seconds), computation, progress, self._overhead, self._longest)

    def metrics(self) -> dict[str, float]:
        return {"period": self._periods[-1][1]}

    def summary(self) -> dict[str, Any]:
        return {"periods": self._periods}

    def state_dict(self) -> dict[str, Any]:
        chosen = {"next": self._next, "first_loss": self._first_loss, "periods": self._periods}
        return {**chosen, "merge_seconds": self._average_seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._next, self._first_loss = state["next"], state["first_loss"]
        self._periods, self._average_seconds = state["periods"], state["merge_seconds"]

    def rank_state(self) -> dict[str, Tensor]:
        return {"own": self.own.clone(), "step_seconds": torch.tensor(self._step_seconds, dtype=torch.float64)}

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        self.own, self._step_seconds = state["own"], state["step_seconds"].tolist()


class Adaptive(SyncStrategy):
    """H local steps, then w <- mean(w_i) and a new H, computed from what all ranks measured."""

    def __init__(self, context: Context, overhead: float, longest: int) -> None:
        self._schedule = Schedule(context.comm, overhead, longest)
        self._rounds = Rounds(context, parts=[self._schedule])
        self._replicas = self._rounds.replicas
        super().__init__(
            context,
            members=self._replicas.members(),
            gradient_scale=OwnMean(context.comm),
            view=self._replicas,
        )
        self.now: Callable[[], float] = time.perf_counter
        self._step_began: float | None = None

    def optimizer(self, model: nn.Module, build: Build) -> ModelOptimizer:
        return self._replicas.use(super().optimizer(model, build))

    def start(self, model: nn.Module) -> None:
        super().start(model)
        self._replicas.start(model)

    def on_loss(self, loss: float, samples: float) -> None:
        self._schedule.own[: SAMPLES + 1] += torch.tensor([loss * samples, samples], dtype=torch.float64)

    def on_gradients(self, step: int) -> None:
        self._replicas.refresh()

    def on_parameters(self, step: int) -> None:
        self._replicas.step()
        if self._step_began is not None:
            self._schedule.time_step(self._now() - self._step_began)
        if self._schedule.due(step):
            self._average(step)
            self._schedule.choose(step, self._replicas.averages)
        self._step_began = self._now()

    def finish(self) -> bool:
        unfinished = self._replicas.diverged
        if unfinished:
            self._average()
        return unfinished and self._rounds.inexact

    def _average(self, step: int = -1) -> None:
        exchange = self._schedule.exchange()
        began = self._now()
        self._rounds.average(step)
        self._schedule.end_round(self._now() - began)
        exchange.wait()

    def _now(self) -> float:
        """Return seconds, after the GPU has finished its work."""
        if any(t.is_cuda for t in self._replicas.flat.tensors):
            torch.cuda.synchronize()
        return self.now()


def _ratio(loss: float, first: float | None) -> float:
    """Return the ratio of two positive losses.

    For other losses, which do not show progress, return 1.
    """
    return loss / first if first and first > 0 and loss > 0 else 1.0


def create(
    context: Context,
    *,
    overhead: Annotated[float, Field(gt=0), "share of the steps' time that averages may take at the beginning"] = 0.1,
    max_period: Annotated[PositiveInt, "longest period"] = 64,
) -> Adaptive:
    return Adaptive(context, overhead, max_period)

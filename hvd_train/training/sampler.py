"""The samples of a rank in each step, agreed on by all ranks."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import gather_json
from hvd_train.data.partitioning.base import Partitioner, WorkerSamples
from hvd_train.errors import UserError
from hvd_train.sync.membership import Share

Workers = Callable[[int], Share | None]
"""From an epoch: the worker of this rank and the number of workers; None: no samples."""

SMOOTHING = 0.5
"""The weight of the last epoch in the smoothed speeds; the previous speeds have the rest."""

UNMEASURED = (
    "data.partition.weights: auto needs workers that take their steps together, each with the whole model; "
    "here their shares stay equal (give the weights as a list)"
)


@dataclass(frozen=True)
class Epoch:
    """One rank's part of an epoch: steps of `accumulate` micro-batches of `batch_size` samples.

    `lengths[r]` is the number of samples of rank r, and `batch_sizes[r]` its batch size (by default
    the one of this rank). All ranks have the same number of steps. A rank that has no samples left
    takes part without samples.
    """

    indices: Tensor
    lengths: tuple[int, ...]
    batch_size: int
    accumulate: int
    batch_sizes: tuple[int, ...] = ()

    @property
    def per_step(self) -> tuple[int, ...]:
        """The number of samples of each rank in a full step."""
        return tuple(size * self.accumulate for size in self.batch_sizes or [self.batch_size] * len(self.lengths))

    @property
    def steps(self) -> int:
        """The number of steps."""
        return max(-(-n // full) for n, full in zip(self.lengths, self.per_step, strict=True))

    def samples(self, step: int) -> int:
        """Return the number of samples of all ranks in `step`."""
        parts = zip(self.lengths, self.per_step, strict=True)
        return sum(min(max(n - step * full, 0), full) for n, full in parts)

    def micro_batches(self, step: int) -> list[Tensor]:
        """Return the positions of this rank in `step`, one tensor for each micro-batch.

        The list is empty if no samples are left.
        """
        full = self.batch_size * self.accumulate
        own = self.indices[step * full : (step + 1) * full]
        return list(own.split(self.batch_size)) if len(own) else []


@dataclass
class Sampler:
    """Plans the epochs of a data set.

    `labels` has one entry for each sample; `comm` joins ranks that step together.

    If the partitioner is adaptive, shares are equal in the first epoch. At the start of each later
    epoch, ranks exchange how long they computed, and all of them pass the same speeds to the
    partitioner.
    """

    labels: Tensor
    partitioner: Partitioner
    workers: Workers
    comm: Communicator
    batch_size: int
    accumulate: int
    seed: int

    def __post_init__(self) -> None:
        self._adaptive = self.partitioner.adaptive
        self._speeds: list[float] = []
        self._measured = [0.0, 0.0]
        self._planned = -1

    def check(self, world: Communicator) -> tuple[int, int]:
        """Return the samples of this rank in the first epoch, and its batch size.

        Collective over `world`.

        Raise UserError on every rank if the samples of one rank cannot be determined. Warn once if
        speeds cannot be measured, since the ranks of `world` do not all step together.
        """
        own, problem = self.workers(0), None
        indices, batch_size = self._nothing()
        try:
            if own:
                self.partitioner.check(own[1])
                indices, batch_size = self._share(own, 0)
        except UserError as error:
            problem = str(error)
        apart = self._adaptive and max(world.size, own[1] if own else 0) > self.comm.size
        answers = gather_json(world, [problem, apart])
        refusal = next((text for text, _ in answers if text), None)
        if refusal:
            raise UserError(refusal)
        if any(apart for _, apart in answers):
            self._adaptive = False
            if world.rank == 0:
                print(f"ddl: {UNMEASURED}", file=sys.stderr, flush=True)
        return len(indices), batch_size

    def epoch(self, number: int) -> Epoch:
        """Return the plan of epoch `number`; collective."""
        own = self.workers(number)
        if self._adaptive and number != self._planned:
            self._update_speeds(own[0] if own else -1)
        self._planned = number
        return self._plan(own, number)

    def plan(self, number: int) -> Epoch:
        """Return what `epoch` returns with the current speeds, without an effect on later epochs.

        The call is collective.
        """
        return self._plan(self.workers(number), number)

    def record(self, seconds: float, samples: int) -> None:
        """Add `seconds`, without any waiting, in which this rank computed on `samples`."""
        self._measured[0] += seconds
        self._measured[1] += samples

    def rank_state(self) -> dict[str, Tensor]:
        """Return what this rank resumes from: the current speeds, and what it measured since."""
        if not self._adaptive:
            return {}
        state = {"weights": self._speeds, "measured": self._measured, "planned": [self._planned]}
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in state.items()}

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        """Resume from what `rank_state` returned."""
        if state and self._adaptive:
            self._speeds, self._measured = state["weights"].tolist(), state["measured"].tolist()
            self._planned = int(state["planned"])

    def _plan(self, own: Share | None, number: int) -> Epoch:
        indices, batch_size = self._share(own, number) if own else self._nothing()
        plans = self.comm.all_gather(torch.tensor([[len(indices), batch_size]]))
        lengths, batch_sizes = torch.cat(plans).T.tolist()
        return Epoch(indices, tuple(lengths), batch_size, self.accumulate, tuple(batch_sizes))

    def _share(self, own: Share, number: int) -> WorkerSamples:
        return self.partitioner.share(
            self.labels, *own, batch_size=self.batch_size, epoch=number, seed=self.seed, speeds=self._speeds
        )

    def _nothing(self) -> WorkerSamples:
        return WorkerSamples(torch.empty(0, dtype=torch.int64), self.batch_size)

    def _update_speeds(self, worker: int) -> None:
        """Exchange what the workers measured in the last epoch.

        `worker` is -1 for a rank that is no worker.
        """
        own = torch.tensor([[worker, *self._measured]], dtype=torch.float64)
        of_ranks = torch.cat(self.comm.all_gather(own)).tolist()
        of_workers = sorted(row for row in of_ranks if row[0] >= 0)
        self._measured = [0.0, 0.0]
        if [row[0] for row in of_workers] == list(range(len(of_workers))):
            self._speeds = smoothed(self._speeds, [(seconds, samples) for _, seconds, samples in of_workers])


def smoothed(speeds: Sequence[float], measured: Sequence[tuple[float, float]]) -> list[float]:
    """Return relative speeds, of sum 1, from what workers `measured` as (seconds, samples).

    They are smoothed by the old `speeds`.

    Return `speeds` if some worker had no samples.
    """
    if not all(seconds > 0 and samples > 0 for seconds, samples in measured):
        return list(speeds)
    rates = [samples / seconds for seconds, samples in measured]
    shares = [rate / math.fsum(rates) for rate in rates]
    if len(speeds) != len(shares):
        return shares
    return [SMOOTHING * new + (1 - SMOOTHING) * old for new, old in zip(shares, speeds, strict=True)]

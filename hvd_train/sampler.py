"""Which samples a rank takes in which step, agreed on by all ranks."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hvd_train.comm.base import Communicator, gather_json
from hvd_train.errors import UserError
from hvd_train.partition._apportion import apportion
from hvd_train.partition.base import Partitioner
from hvd_train.partition.weighted import Weighted, deal

Shares = Callable[[int], tuple[int, int] | None]
"""For an epoch: which worker this rank is, of how many; None where it is to have no samples."""

SMOOTHING = 0.5
"""Of the measured shares, how much is the last epoch's; the rest is what was used in it."""


@dataclass(frozen=True)
class Epoch:
    """One rank's part of a pass over the data, cut into steps of `accumulate` micro-batches of `batch_size` samples.

    `lengths[r]` is the number of samples of rank r, and `batch_sizes[r]` its batch size (none given: this rank's). All
    ranks have the same number of steps; a rank whose samples have run out takes part with none.
    """

    indices: Tensor
    lengths: tuple[int, ...]
    batch_size: int
    accumulate: int
    batch_sizes: tuple[int, ...] = ()

    @property
    def per_step(self) -> tuple[int, ...]:
        """Samples of each rank in a full step."""
        return tuple(size * self.accumulate for size in self.batch_sizes or [self.batch_size] * len(self.lengths))

    @property
    def steps(self) -> int:
        return max(-(-n // full) for n, full in zip(self.lengths, self.per_step, strict=True))

    def samples(self, step: int) -> int:
        """Samples of all ranks in `step`."""
        parts = zip(self.lengths, self.per_step, strict=True)
        return sum(min(max(n - step * full, 0), full) for n, full in parts)

    def micro_batches(self, step: int) -> list[Tensor]:
        """This rank's positions in `step`, one tensor a micro-batch; none where its samples have run out."""
        full = self.batch_size * self.accumulate
        mine = self.indices[step * full : (step + 1) * full]
        return list(mine.split(self.batch_size)) if len(mine) else []


@dataclass
class Sampler:
    """Epochs of a data set of which `labels` has one entry a sample; `comm` joins the ranks that take their steps together.

    With the partition `weighted`, workers have batches in proportion to their weights, of the same sum as equal ones. Where
    weights are measured, they are equal in the first epoch; after it every rank knows how long all of them computed.
    """

    labels: Tensor
    partitioner: Partitioner
    share: Shares
    comm: Communicator
    batch_size: int
    accumulate: int
    seed: int

    def __post_init__(self) -> None:
        self._workers = 0
        self._alone = False
        self._weights: list[float] = []
        self._measured = [0.0, 0.0]
        self._planned = -1
        self.first = 0, self.batch_size
        """Samples of this rank in the first epoch, and its batch size there; after `check`."""

    def check(self, world: Communicator) -> None:
        """Before anything is written: UserError on every rank of `world` where one of them cannot have its samples."""
        share, problem = self.share(0), None
        self._workers = share[1] if share else 0
        try:
            if share:
                indices, batch_size = self._deal(share, 0)
                self.first = len(indices), batch_size
        except UserError as error:
            problem = str(error)
        alone = self._measures and max(world.size, self._workers) > self.comm.size
        answers = gather_json(world, [problem, alone])
        refusal = next((told for told, _ in answers if told), None)
        if refusal:
            raise UserError(refusal)
        self._alone = any(alone for _, alone in answers)
        if self._alone and world.rank == 0:
            print(f"ddl: {UNMEASURED}", file=sys.stderr, flush=True)

    def epoch(self, number: int) -> Epoch:
        """The plan of epoch `number`; collective."""
        share = self.share(number)
        if self._measures and number != self._planned:
            self._balance(share[0] if share else -1)
        self._planned = number
        return self._plan(share, number)

    def plan(self, number: int) -> Epoch:
        """As `epoch`, under the weights in use, and without any effect on later epochs; collective."""
        return self._plan(self.share(number), number)

    def _plan(self, share: tuple[int, int] | None, number: int) -> Epoch:
        indices, batch_size = torch.empty(0, dtype=torch.int64), self.batch_size
        if share:
            indices, batch_size = self._deal(share, number)
        plans = self.comm.all_gather(torch.tensor([[len(indices), batch_size]]))
        lengths, batch_sizes = torch.cat(plans).T.tolist()
        return Epoch(indices, tuple(lengths), batch_size, self.accumulate, tuple(batch_sizes))

    def record(self, seconds: float, samples: int) -> None:
        """This rank has computed for `seconds` on `samples`, waiting for nobody."""
        self._measured[0] += seconds
        self._measured[1] += samples

    def rank_state(self) -> dict[str, Tensor]:
        """What this rank goes on from: the weights in use, and what was measured since."""
        if not self._measures:
            return {}
        state = {"weights": self._weights, "measured": self._measured, "planned": [self._planned]}
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in state.items()}

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        if state and self._measures:
            self._weights, self._measured = state["weights"].tolist(), state["measured"].tolist()
            self._planned = int(state["planned"])

    @property
    def _measures(self) -> bool:
        return isinstance(self.partitioner, Weighted) and self.partitioner.weights is None and not self._alone

    def _deal(self, share: tuple[int, int], number: int) -> tuple[Tensor, int]:
        """The samples of a worker, and its batch size."""
        worker, workers = share
        if not isinstance(self.partitioner, Weighted):
            indices = self.partitioner.indices(self.labels, worker, workers, epoch=number, seed=self.seed)
            return indices, self.batch_size
        weights = self._weights or self.partitioner.of(self._workers or workers)
        if len(weights) != workers:  # some have been lost since the start
            weights = [1.0] * workers
        batches = apportion(self.batch_size * workers, weights, minimum=1)
        return deal(len(self.labels), worker, batches, epoch=number, seed=self.seed), batches[worker]

    def _balance(self, worker: int) -> None:
        """Weights for the next epoch from what all workers, of which this rank may be one, measured in the last."""
        mine = torch.tensor([[worker, *self._measured]], dtype=torch.float64)
        of_ranks = torch.cat(self.comm.all_gather(mine)).tolist()
        of_workers = sorted(row for row in of_ranks if row[0] >= 0)
        self._measured = [0.0, 0.0]
        if [row[0] for row in of_workers] == list(range(len(of_workers))):
            self._weights = of_equal_time(self._weights, [(seconds, samples) for _, seconds, samples in of_workers])


UNMEASURED = (
    "data.partition.weights: auto needs workers that take their steps together, each with the whole model; "
    "here their shares stay equal (give the weights as a list)"
)


def of_equal_time(weights: Sequence[float], measured: Sequence[tuple[float, float]]) -> list[float]:
    """Weights, of sum 1, by which workers that `measured` (seconds, samples) each would take equally long.

    Smoothed by the old `weights`; just these where not every worker had samples.
    """
    if not all(seconds > 0 and samples > 0 for seconds, samples in measured):
        return list(weights)
    rates = [samples / seconds for seconds, samples in measured]
    shares = [rate / math.fsum(rates) for rate in rates]
    if len(weights) != len(shares):
        return shares
    return [SMOOTHING * new + (1 - SMOOTHING) * old for new, old in zip(shares, weights, strict=True)]

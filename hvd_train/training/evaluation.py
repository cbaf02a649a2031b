"""Metrics of a run, and the reasons that they give to end it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.compute.clock import Clock
from hvd_train.compute.execution import Observe
from hvd_train.compute.loss import LOSS
from hvd_train.compute.metrics.meter import Meter, Value
from hvd_train.config.schema import TrainSection
from hvd_train.data.base import Dataset, Split
from hvd_train.data.batch import Batch
from hvd_train.data.lengths import by_length, known_lengths
from hvd_train.data.samples import equally_spaced
from hvd_train.errors import Diverged, UserError
from hvd_train.sync.view import View
from hvd_train.training.accounting import Accounting
from hvd_train.training.agreed import agreed
from hvd_train.training.ema import ParameterAverage
from hvd_train.training.group import Group
from hvd_train.training.objective import Objective, find
from hvd_train.training.progress import Progress

LOWER_RATE = "a lower optimizer.lr, train.clip_norm or schedule.warmup_steps usually mends it"


Evaluate = Callable[[Any, Tensor, Observe], None]
"""Takes a held-out split and positions in it, and calls its last argument with outputs for them."""


class Evaluation:
    """Evaluates the model on the held-out samples, and checks the limits that `train` sets."""

    def __init__(
        self,
        train: TrainSection,
        data: Dataset,
        model: nn.Module,
        clock: Clock,
        evaluate: Evaluate,
        view: View,
        group: Group,
        accounting: Accounting,
        progress: Progress,
        average: ParameterAverage | None = None,
        *,
        meters: Sequence[Meter],
    ) -> None:
        self._train, self._data, self._view = train, data, view
        self._model, self._clock, self._evaluate = model, clock, evaluate
        self._group, self._accounting, self._progress = group, accounting, progress
        self._average = average
        self._meters = meters
        early, goal = train.early_stop, train.converge
        self._early_stop = self.objective("train.early_stop.metric", early.metric, early.mode) if early else None
        self._converge = self.objective("train.converge.metric", goal.metric, goal.mode) if goal else None
        self.metrics: dict[str, Value] = {}
        """Metrics of the last evaluation, by name."""
        self.spent: dict[str, float] = {"seconds": 0.0, "bytes_sent": 0}
        """Seconds of training and bytes sent, just before the last evaluation."""
        self.step = -1
        """The step after which the model was last evaluated; -1 if no evaluation is valid."""

    def objective(self, option: str, name: str, mode: Literal["min", "max"] | None) -> Objective:
        """Return the metric `name` that `option` names; UserError if evaluations have none."""
        if not len(self._data.test):
            raise UserError(f"{option}: there are no held-out samples; leave it out, or hold some out")
        return find(option, name, mode, {m.name: m.higher_is_better for m in self._meters}, self._data.others)

    @torch.no_grad()
    def run(self) -> bool:
        """Evaluate the model that ranks agree on, with averaged parameters if `train.ema` is set.

        Return False if this rank does not evaluate. The call is collective. Raise Diverged if the
        held-out loss is not finite.
        """
        if not len(self._data.test) or not self._group.observes:
            return False
        own = self._view.evaluates_own
        self.spent = self._accounting.spent()
        shown = nullcontext() if own else agreed(self._model, self._view, self._group.evaluates_with)
        averaged = self._average.shown() if self._average is not None else nullcontext()
        with self._clock("eval"), self._accounting.control(), shown, averaged:
            self._model.eval()
            self.metrics = measure(self._evaluate, self._data, self._group, self._meters, self._train.eval_samples)
        loss = self.metrics.get(LOSS, 0.0)
        if not isinstance(loss, float) or not math.isfinite(loss):
            raise Diverged(f"the held-out loss became {loss} after step {self._progress.step}; {LOWER_RATE}")
        self.step = self._progress.step
        return True

    def reason_to_end(self) -> str | None:
        """Return why the last evaluation ends the run, None if the run continues.

        The result is equal on every rank that evaluates.
        """
        limits = {"seconds": self._train.max_seconds, "bytes_sent": self._train.max_bytes}
        for name, limit in limits.items():
            if limit and self.spent[name] >= limit:
                return f"{name} used up"
        if self._has_converged():
            return "converged"
        return "early stop" if self._stops_early() else None

    def _has_converged(self) -> bool:
        goal, found = self._train.converge, self._converge
        return goal is not None and found is not None and found.value(self.metrics) >= found.signed(goal.value)

    def _stops_early(self) -> bool:
        """Compare the metric with the best so far, and count evaluations without improvement."""
        early, progress = self._train.early_stop, self._progress
        if early is None or self._early_stop is None:
            return False
        value = self._early_stop.value(self.metrics)
        if not math.isnan(value) and (progress.best is None or value > progress.best + early.min_delta):
            progress.best, progress.evaluations_without_improvement = value, 0
        else:
            progress.evaluations_without_improvement += 1
        return progress.evaluations_without_improvement >= early.patience


def measure(
    evaluate: Evaluate, data: Dataset, group: Group, meters: Sequence[Meter], most: int | None = None
) -> dict[str, Value]:
    """Return the metrics of the model as it is on each rank, in eval mode, for all held-out splits; collective.

    Metrics of further splits are called `SPLIT/NAME`. Each split counts at most `most` samples.
    """
    metrics: dict[str, Value] = {}
    for name, split in {"": data.test, **data.others}.items():
        for meter in meters:
            meter.reset()
        own = held_out_part(split, most, group.evaluates_with)
        evaluate(split, own, partial(_observe, meters))
        for meter in meters:
            found = meter.compute(group.steps_with)
            metrics |= {f"{name}/{key}" if name else key: value for key, value in found.items()}
    return metrics


def _observe(meters: Sequence[Meter], outputs: Any, batch: Batch) -> None:
    for meter in meters:
        meter.update(outputs, batch)


def held_out_part(split: Split, most: int | None, comm: Communicator, size: int = 1) -> Tensor:
    """Return the positions of the held-out samples that this rank of `comm` evaluates.

    If there are more than `most` samples, as many at equal distances are evaluated. Ranks have
    consecutive parts of equal length, so that lists of values have one order on any number of ranks.
    A part consists of whole batches of `size`. The batches are then the same on any number of ranks.
    """
    order = by_length(split, equally_spaced(len(split), most))
    lengths = known_lengths(split, order).clamp(min=1).double()
    of_batch = torch.arange(len(order)) // size
    costs = torch.zeros(-(-len(order) // size), dtype=torch.float64).index_add_(0, of_batch, lengths)
    numbers = (costs.cumsum(0) - costs / 2) * comm.size / costs.sum()
    return order[numbers.long()[of_batch] == comm.rank]


@torch.no_grad()
def score(model: nn.Module, evaluate: Evaluate, data: Dataset, group: Group, meters: Sequence[Meter]) -> float:
    """Return the first value that `meters` measure, minus it if a smaller one is better; collective.

    The score is of the model as it is on each rank.
    """
    model.eval()
    with group.trains_with.aside():
        metrics = measure(evaluate, data, group, meters)
    meter = next(meter for meter in meters if meter.name in metrics)
    found = metrics[meter.name]
    assert isinstance(found, float)
    return found if meter.higher_is_better else -found

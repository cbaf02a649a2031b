"""One step of the optimizer: forward, backward, exchange, update."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from hvd_train.compute.execution import Execution
from hvd_train.compute.loss import LOSS, Sums, units
from hvd_train.compute.metrics.loss import RunningLoss
from hvd_train.compute.precision import Precision
from hvd_train.config.schema import Config
from hvd_train.data.batch import Batch
from hvd_train.errors import Diverged
from hvd_train.gradients.optimizer import ModelOptimizer
from hvd_train.sync.base import SyncStrategy
from hvd_train.training import schedule
from hvd_train.training.adversary import Adversary
from hvd_train.training.evaluation import LOWER_RATE
from hvd_train.training.feed import Feed, MicroBatches
from hvd_train.training.noise import NoiseScale
from hvd_train.training.progress import Length, Progress
from hvd_train.training.sampler import Sampler


class Step:
    """Takes one step at a time, and calls the strategy's hooks around it."""

    def __init__(
        self,
        config: Config,
        sampler: Sampler,
        execution: Execution,
        optimizer: ModelOptimizer,
        strategy: SyncStrategy,
        precision: Precision,
        progress: Progress,
        counts: bool,
        noise: NoiseScale | None,
        adversary: Adversary | None,
    ) -> None:
        """`counts`: the units of a batch are known only once it is loaded (tokens, say)."""
        self._schedule, self._clip_norm = config.schedule, config.train.clip_norm
        self._execution, self._optimizer, self._sampler = execution, optimizer, sampler
        self._strategy, self._precision, self._scaler = strategy, precision, precision.scaler
        self._progress, self._counts, self._noise, self._adversary = progress, counts, noise, adversary
        self._clock = execution.clock
        self.skipped = 0
        """Damaged samples of this rank that were left out."""
        self.loss = RunningLoss()
        """The training losses since the last record, on a rank that reports them."""
        scale = strategy.members.workers if config.schedule.scale_by_world_size else 1
        self.rates = [group["lr"] * scale for group in optimizer.torch.param_groups]
        """The base learning rate of each parameter group."""

    def run(self, feed: Feed, length: Length) -> None:
        """Take the next step of the epoch of `feed`; collective."""
        position, computed = self._progress.step_in_epoch, self._seconds_computing
        with self._clock("data"):
            batches = feed.take(position)
        samples = feed.samples(position)
        self._set_rates(length.position(self._progress, feed.steps), length.steps)
        self._update(batches, samples)
        with self._clock("comm"):
            self._strategy.on_parameters(self._progress.step)
            if position + 1 >= feed.steps:
                self._strategy.on_epoch(self._progress.epoch)
        self._sampler.record(self._seconds_computing - computed, batches.positions)
        self._progress.add_step(samples)

    @property
    def rate(self) -> float:
        """The current learning rate of the first parameter group."""
        return float(self._optimizer.torch.param_groups[0]["lr"])

    @property
    def _seconds_computing(self) -> float:
        """Seconds in which this rank computed and waited for no other rank."""
        return self._clock.computing - self._strategy.waited

    def _set_rates(self, position: float, steps: int) -> None:
        factor = schedule.factor(self._schedule, position, steps)
        for group, base in zip(self._optimizer.torch.param_groups, self.rates, strict=True):
            group["lr"] = base * factor

    def _update(self, batches: MicroBatches, samples: int) -> None:
        own, total = self._units(batches, samples)
        if isinstance(self._optimizer.torch, torch.optim.LBFGS):
            batches.keep()
            objective = self._strategy.gradient_scale.objective
            self._optimizer.torch.step(lambda: objective(self._gradients(batches, own, total)))
            return
        self._gradients(batches, own, total)
        with self._clock("optimizer"):
            if self._clip_norm is None:
                self._scaler.unscale_gradients(self._optimizer)
            self._scaler.step(self._optimizer.torch)
            self._scaler.update()

    def _units(self, batches: MicroBatches, samples: int) -> tuple[float, float]:
        """Return the units that this rank's losses sum over, and those of all ranks.

        Collective if the units are only known once the batches are loaded.
        """
        if not self._counts:
            return batches.positions, samples
        with self._clock("data"):
            batches.keep()
        self.skipped += batches.skipped
        own = sum(units(self._execution.loss, batch) for batch in batches)
        with self._clock("comm"):
            return own, self._strategy.gradient_scale.total(own)

    def _gradients(self, batches: MicroBatches, own: float, total: float) -> float:
        """Set the gradients of a step whose losses sum over `total` units on all ranks.

        `own` units are this rank's. Return this rank's part of the objective.
        """
        model = self._execution.model
        trained = self._perturbed(batches)
        model.zero_grad(set_to_none=True)
        model.train()
        self._precision.begin()
        divisor = self._strategy.gradient_scale.divisor(own, total)
        watched = trained if self._noise is None else self._noise.watch(trained)
        losses = self._execution.gradients(watched, divisor, self._before_last_backward, self._check)
        loss = losses.get(LOSS, 0.0)
        if own and self._execution.reports:
            self._strategy.on_loss(loss / own, own)
        with self._clock("comm"):
            self._strategy.on_gradients(self._progress.step)
        self._execution.complete_gradients()
        if self._noise is not None:
            with self._clock("comm"):
                self._noise.end(self._optimizer.square(), divisor, float(self._scaler.get_scale()))
        self._clip()
        if self._execution.reports:
            self.loss.add(losses, own)
        return loss / divisor

    def _perturbed(self, batches: MicroBatches) -> Sequence[Batch]:
        """Return the micro-batches to train on."""
        if self._adversary is None:
            return batches
        with self._clock("data"):
            batches.keep()
        with self._clock("forward"):
            return self._adversary.perturbed(batches, self._progress.step)

    def _before_last_backward(self) -> None:
        self._optimizer.adopt()
        self._strategy.on_backward(self._progress.step)

    def _check(self, losses: Sums, micro_batch: int) -> Sums:
        """Return `losses`; raise Diverged if one is not finite."""
        if all(map(math.isfinite, losses.values())):
            return losses
        wrong = next(name for name, value in reversed(losses.items()) if not math.isfinite(value))
        at = f"step {self._progress.step + 1} (epoch {self._progress.epoch + 1}, micro-batch {micro_batch})"
        what = "the loss" if wrong == LOSS else f"the part '{wrong.removeprefix(LOSS + '_')}' of the loss"
        raise Diverged(f"{what} became {losses[wrong]} at {at} with learning rate {self.rate:g}; {LOWER_RATE}")

    def _clip(self) -> None:
        if self._clip_norm is not None:
            with self._clock("optimizer"):
                self._scaler.unscale_gradients(self._optimizer)
                self._optimizer.clip(self._clip_norm)

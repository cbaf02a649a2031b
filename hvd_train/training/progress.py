"""How far a run has come, and how long it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from hvd_train.config.schema import TrainSection
from hvd_train.training.sampler import Epoch

DEFAULT_EPOCHS = 10


@dataclass
class Progress:
    """The position of a run in its data, and its totals. Every checkpoint holds it."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    samples: int = 0
    samples_in_epoch: int = 0
    env_steps: int = 0
    """Steps of all environments in which an agent has learnt."""
    best: float | None = None
    evaluations_without_improvement: int = 0
    seconds: float = 0.0
    """Seconds of training in earlier processes, the mean over ranks."""
    bytes_sent: int = 0
    """Bytes that the training of all ranks sent in earlier processes."""
    noise_trace: float = 0.0
    """The moving averages of the estimates of the gradient noise scale (`noise.estimates`)."""
    noise_square: float = 0.0
    steps_of_epoch: int | None = None
    """Steps in the current epoch, None before its plan is known. Not saved."""
    new_env_steps: int = 0
    """Steps of environments that were made for the current epoch, part of `env_steps`. Not saved."""

    @property
    def epoch_is_over(self) -> bool:
        return self.steps_of_epoch is not None and self.step_in_epoch >= self.steps_of_epoch

    @property
    def env_steps_learnt(self) -> float:
        """Steps of environments of all ranks; those of the current epoch count as its steps are taken."""
        left = 1 - self.step_in_epoch / (self.steps_of_epoch or 1)
        return self.env_steps - self.new_env_steps * left

    def add_step(self, samples: int) -> None:
        """Count a step in which all ranks together had `samples` samples."""
        self.step += 1
        self.step_in_epoch += 1
        self.samples += samples
        self.samples_in_epoch += samples

    def begin(self, epoch: Epoch) -> None:
        """Enter `epoch`, whose samples have positions, at the last step boundary at or before the saved position in its samples.

        A step holds other samples if the number of ranks has changed. The saved position may then
        lie within a step.
        """
        target = self.samples_in_epoch
        self.steps_of_epoch = epoch.steps
        self.restart_epoch()
        for step in range(epoch.steps):
            if self.samples_in_epoch + epoch.samples(step) > target:
                return
            self.step_in_epoch += 1
            self.samples_in_epoch += epoch.samples(step)

    def next_epoch(self) -> None:
        self.epoch += 1
        self.new_env_steps = 0
        self.restart_epoch()

    def restart_epoch(self) -> None:
        self.step_in_epoch = self.samples_in_epoch = 0

    def forget_best(self) -> None:
        """Let early stopping compare with no earlier evaluation."""
        self.best, self.evaluations_without_improvement = None, 0

    def to_save(self, seconds: float, bytes_sent: int) -> dict[str, Any]:
        """Return the saved form, given what the run has cost so far.

        At the end of an epoch the next epoch is saved as the current one: if the run resumes with
        other data, it must not repeat the old epoch.
        """
        values = {name: getattr(self, name) for name in _SAVED} | {"seconds": seconds, "bytes_sent": bytes_sent}
        if self.epoch_is_over:
            values |= {"epoch": self.epoch + 1, "step_in_epoch": 0, "samples_in_epoch": 0}
        return values

    def load(self, saved: dict[str, Any]) -> None:
        """Restore what `to_save` returned.

        Raise TypeError if a value is not a number, KeyError if the step is missing.
        """
        known = {"step": saved["step"]} | {name: saved[name] for name in _SAVED if name in saved}
        wrong = [name for name, value in known.items() if not isinstance(value, int | float | None)]
        if wrong:
            raise TypeError(f"progress.{wrong[0]} is {known[wrong[0]]!r}")
        for name, value in vars(Progress(**known)).items():
            setattr(self, name, value)


_SAVED = [field.name for field in fields(Progress) if field.name not in ("steps_of_epoch", "new_env_steps")]


@dataclass(frozen=True)
class Length:
    """The length of a run, in steps or in epochs."""

    epochs: int | None
    """None if the run ends after `steps` steps."""
    steps: int
    """Steps of the learning rate's schedule."""
    steps_per_epoch: int
    """Steps of the first epoch under the present number of ranks."""

    def is_reached(self, progress: Progress) -> bool:
        if self.epochs is None:
            return progress.step >= self.steps
        return progress.epoch >= self.epochs

    def of_epochs(self, epochs: int) -> Length:
        """Return this length with `epochs`, if it is one in epochs."""
        return self if self.epochs is None else Length(epochs, epochs * self.steps_per_epoch, self.steps_per_epoch)

    def position(self, progress: Progress, steps_of_epoch: int) -> float:
        """Return the position in the schedule, in steps; it never decreases.

        In a run by epochs each epoch counts as many steps as the first one has under the present
        number of ranks. The current epoch has `steps_of_epoch`.
        """
        if self.epochs is None:
            return progress.step
        done = progress.step_in_epoch
        within = done if steps_of_epoch == self.steps_per_epoch else done * self.steps_per_epoch / steps_of_epoch
        return progress.epoch * self.steps_per_epoch + within

    def last_step(self, progress: Progress, steps_of_epoch: int) -> int:
        """Return the number of the step after which the run ends."""
        return progress.step + max(0, math.ceil(self.steps - self.position(progress, steps_of_epoch)))


def length(train: TrainSection, steps_per_epoch: int, epochs: int | None = None) -> Length:
    """Return the length that `train` asks for; `epochs` is what `train.env_steps` comes to."""
    epochs = epochs or train.epochs or DEFAULT_EPOCHS
    return Length(None if train.steps else epochs, train.steps or epochs * steps_per_epoch, steps_per_epoch)

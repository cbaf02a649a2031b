"""What training costs: time, and bytes sent."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

import torch

from hvd_train.compute.clock import Clock
from hvd_train.training.group import Group
from hvd_train.training.progress import Progress


class Accounting:
    """Measures the training of this process, from `begin` on.

    What a rank sends within `control` does not count as training.
    """

    def __init__(self, group: Group, clock: Clock, progress: Progress) -> None:
        self._group, self._clock, self._progress = group, clock, progress
        self._traffic = group.trains_with.traffic
        self.steps_per_second = 0.0
        """Steps per second of this rank, after `end_steps`."""
        self.env_steps_per_second = 0.0
        """Steps of the environments of all ranks per second, after `end_steps`."""
        self._began: float | None = None
        self._steps_before = self._samples_before = self._bytes_before = 0
        self._env_steps_before = 0.0
        self._logged = 0.0, 0, 0.0

    def begin(self, since: float | None = None) -> None:
        """Start to measure, before the first step; from the time `since` of `time.perf_counter` on, if given."""
        self._began = time.perf_counter() if since is None else since
        self._steps_before, self._samples_before = self._progress.step, self._progress.samples
        self._bytes_before = self._traffic.training
        self._env_steps_before = self._progress.env_steps_learnt
        self._logged = self._began, self._samples_before, self._env_steps_before

    def end_steps(self) -> None:
        """Fix the rates of steps at the first call: what follows the last step is not training."""
        if not self.steps_per_second:
            seconds = self.seconds
            self.steps_per_second = (self._progress.step - self._steps_before) / seconds
            self.env_steps_per_second = (self._progress.env_steps_learnt - self._env_steps_before) / seconds

    def control(self) -> AbstractContextManager[None]:
        """Mark what this thread sends as control messages: metrics, agreements, checkpoints."""
        return self._group.trains_with.aside()

    @property
    def seconds(self) -> float:
        """Seconds of training, without the evaluations if all ranks wait for them."""
        if self._began is None:
            return 0.0
        evaluating = self._clock.seconds["eval"] if self._group.in_step else 0.0
        return time.perf_counter() - self._began - evaluating

    @property
    def bytes_sent(self) -> int:
        """Bytes that this rank sent for training."""
        return 0 if self._began is None else self._traffic.training - self._bytes_before

    @property
    def samples_per_second(self) -> float:
        """Samples of all ranks per second, evaluations included; after `begin`."""
        assert self._began is not None, "begin() first"
        return (self._progress.samples - self._samples_before) / (time.perf_counter() - self._began)

    def log_rates(self) -> dict[str, float]:
        """Return the samples and the steps of environments of all ranks per second since the previous call.

        A run without environments has no rate of their steps.
        """
        before = self._logged
        now, samples, env_steps = time.perf_counter(), self._progress.samples, self._progress.env_steps_learnt
        self._logged, seconds = (now, samples, env_steps), now - before[0]
        rates = {"samples_per_second": (samples - before[1]) / seconds}
        return (
            rates
            if not self._progress.env_steps
            else {**rates, "env_steps_per_second": (env_steps - before[2]) / seconds}
        )

    def spent(self) -> dict[str, float]:
        """Return the seconds of training and the bytes that all ranks sent; collective.

        Earlier processes are included up to the checkpoint that this process resumed from. A rank
        that takes its steps alone assumes that every other rank sent as much.
        """
        mean = torch.tensor([self.seconds, self.bytes_sent], dtype=torch.float64)
        with self.control():
            self._group.steps_with.all_reduce_(mean, "mean")
        sent = round(float(mean[1]) * self._group.trains_with.size)
        return {"seconds": self._progress.seconds + float(mean[0]), "bytes_sent": self._progress.bytes_sent + sent}

"""The training loop: epochs, records, checkpoints, and the end of a run."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

from hvd_train.agents.collector import Collector
from hvd_train.agents.figures import means
from hvd_train.agents.player import Player
from hvd_train.compute.execution import Execution
from hvd_train.compute.loss import LOSS, units
from hvd_train.compute.metrics.meter import Meter
from hvd_train.compute.precision import Precision
from hvd_train.config.schema import Config
from hvd_train.data.base import Dataset, Split
from hvd_train.errors import Stopped, UserError
from hvd_train.gradients.optimizer import ModelOptimizer
from hvd_train.monitor.base import Record, Sink
from hvd_train.slim.slimming import Slimming
from hvd_train.state.checkpoint_folder import Best
from hvd_train.sync.base import SyncStrategy
from hvd_train.training import checkpoint
from hvd_train.training.accounting import Accounting
from hvd_train.training.adversary import Adversary
from hvd_train.training.best import BestCheckpoint
from hvd_train.training.ema import ParameterAverage
from hvd_train.training.evaluation import Evaluation
from hvd_train.training.feed import Feed, Feeds
from hvd_train.training.group import Group
from hvd_train.training.noise import NoiseScale
from hvd_train.training.progress import Length, Progress, length
from hvd_train.training.sampler import Sampler
from hvd_train.training.snapshot import RunState
from hvd_train.training.step import Step
from hvd_train.training.stopping import StopAgreement


def to_stderr(text: str) -> None:
    print(f"ddl: warning: {text}", file=sys.stderr, flush=True)


def never() -> bool:
    return False


@dataclass
class Trainer:
    """Trains the model of `execution` on this rank's part of `data`.

    `checkpoints` is the folder that checkpoints go to, None if none are saved. `stop` returns True
    once this rank has received a signal to stop.
    """

    config: Config
    group: Group
    data: Dataset
    execution: Execution
    optimizer: ModelOptimizer
    sampler: Sampler
    strategy: SyncStrategy
    precision: Precision
    average: ParameterAverage | None = None
    slimming: Slimming = field(default_factory=Slimming)
    meters: Sequence[Meter] = ()
    """What evaluations measure."""
    sinks: Sequence[Sink] = ()
    checkpoints: Path | None = None
    stop: Callable[[], bool] = never
    adversary: Adversary | None = None
    """Perturbs the training samples; None if they are trained on as they are."""
    collector: Collector | None = None
    """Collects the training samples of each epoch; None if they exist before."""
    player: Player | None = None
    """Evaluates held-out episodes; None if they are samples."""
    counts: bool = False
    """True if the units that the loss sums over are known only once a batch is loaded."""

    def __post_init__(self) -> None:
        self.model, self.clock = self.execution.model, self.execution.clock
        self.progress = Progress()
        self.accounting = Accounting(self.group, self.clock, self.progress)
        self.evaluation = Evaluation(
            self.config.train,
            self.data,
            self.execution.model,
            self.execution.clock,
            (self.player or self.execution).evaluate,
            self.strategy.view,
            self.group,
            self.accounting,
            self.progress,
            self.average,
            meters=self.meters,
        )
        best = self.config.checkpoint.best
        wanted = self.evaluation.objective("checkpoint.best.metric", best.metric, best.mode) if best else None
        self.best = BestCheckpoint(wanted)
        self.feeds = Feeds(self.sampler, self.data.train, self.execution.loader, self.execution.prepare, self.collector)
        trained = self.execution, self.optimizer, self.strategy, self.precision
        self.state = RunState(
            self.config,
            self.data,
            self.feeds,
            *trained,
            self.group,
            self.progress,
            self.accounting,
            self.average,
            self.slimming,
            self.collector,
        )
        self.noise = self._noise_scale() if self.config.train.noise_scale else None
        self.step = Step(self.config, self.sampler, *trained, self.progress, self.counts, self.noise, self.adversary)
        self.of_ranks: list[dict[str, int] | None] = []
        """What each rank counted, in rank order, None for a lost one; filled on rank 0 at the end."""
        self._stop = StopAgreement(self.group.steps_with, self._is_asked_to_stop, self.accounting)
        self._saved = -1
        self._resumed: checkpoint.Snapshot | None = None
        self._warn: Callable[[str], None] = to_stderr

    def restore(self, snapshot: checkpoint.Snapshot, warn: Callable[[str], None] = to_stderr) -> None:
        """Continue from `snapshot`, as `RunState.restore` does.

        Rank 0 warns of what does not fit. The call is collective.
        """
        self._warn = warn if self.group.is_first else lambda text: None
        for text in self.state.restore(snapshot):
            self._warn(f"--resume: {text}")
        self._resumed, self._saved = snapshot, self.progress.step

    def run(self) -> str:
        """Train to the end and return the reason for it, such as 'length' or 'early stop'.

        Raise Stopped after a signal.
        """
        try:
            return self._run()
        finally:  # also after a failure: workers share the output that this rank waits for
            self.execution.loader.close()

    def _run(self) -> str:
        self.clock.activity.step = self.progress.step
        self.clock.enter("start")
        self.strategy.start(self.model)
        self._settle_resumed()
        self.state.restore_statistics()
        if self.average is not None:
            self.average.start()
        self.slimming.start()
        self.clock.enter("serve")
        if self.strategy.members.serve():
            return "served"
        self.execution.open()
        # Loading that begins before the first step is not training. Acting for the first rollout is.
        since = None if self.collector is None else time.perf_counter()
        feed = self._open_feed()
        planned = self._open(feed, since)
        try:
            reason = self._train(feed, planned)
            self._finish()
        except Stopped:
            self._leave()
            raise
        self._leave()
        return reason

    def abandon(self) -> None:
        """Release what the run holds after all ranks, which are `in_step`, have raised Diverged; collective."""
        self._stop.close()
        self._leave()
        for sink in self.sinks:
            sink.abandon()

    @property
    def epochs(self) -> float:
        """Passes over the data so far; the current one counts by the share of its samples.

        Of a stream only whole passes count. Those of an agent are rollouts.
        """
        if self.collector is not None:
            return self.progress.epoch + self.progress.step_in_epoch / (self.progress.steps_of_epoch or 1)
        samples = len(self.data.train) if isinstance(self.data.train, Split) else math.inf
        return self.progress.epoch + self.progress.samples_in_epoch / max(1, samples)

    def _noise_scale(self) -> NoiseScale:
        count = partial(units, self.execution.loss)
        return NoiseScale(self.model, self.group.trains_with, count, self.progress)

    def _settle_resumed(self) -> None:
        """Warn of what the strategy could not restore, and abandon other branches' checkpoints."""
        if self._resumed is None:
            return
        for text in self.strategy.view.unrestored:
            self._warn(f"--resume: {text}")
        if self.checkpoints is not None and self.group.is_first:
            for text in checkpoint.abandon_others(self.checkpoints, self._resumed.folder):
                self._warn(f"--resume: {text}")
        if self.checkpoints is not None:
            with self.accounting.control():
                self.best.restore(self.checkpoints, self.group.steps_with)

    def _open(self, feed: Feed, since: float | None) -> Length:
        """Announce the run to the sinks and start to measure; return the length of the run."""
        if feed.steps == 0:
            raise UserError("data: the training set is empty")
        planned = self._planned_length(feed)
        last = planned.last_step(self.progress, feed.steps)
        if self.group.is_first and not self.slimming.is_complete(last):
            self._warn(
                f"compress_model.prune: the run ends after {last} steps, before schedule.end, with too few zeros"
            )
        title = f"{last} steps: {self.execution.roles(self.strategy.members.roles())}"
        self._notify("open", {"total_steps": last, "first_step": self.progress.step, "title": title})
        self.accounting.begin(since)
        return planned

    def _planned_length(self, feed: Feed) -> Length:
        train = self.config.train
        with self.accounting.control():
            is_like_first = train.steps or not self.progress.epoch
            epochs = self.collector.epochs if self.collector else None
            return length(train, feed.steps if is_like_first else self.sampler.plan(0).steps, epochs)

    def _extended(self, planned: Length) -> Length:
        """Return the length of the run, with an epoch more where rollouts were cut."""
        epochs = self.collector.epochs if self.collector else None
        return planned if epochs is None else planned.of_epochs(epochs)

    def _open_feed(self) -> Feed:
        with self.accounting.control(), self.clock("data"):
            return self.feeds.open(self.progress)

    def _train(self, feed: Feed, planned: Length) -> str:
        """Train to the end of the run and return the reason for it."""
        while not planned.is_reached(self.progress):
            while not self.progress.epoch_is_over and not planned.is_reached(self.progress):
                self.step.run(feed, planned)
                self.progress.steps_of_epoch = feed.steps
                reason = self._after_step()
                if reason:
                    return reason
            if self.progress.epoch_is_over:
                self.progress.next_epoch()
                planned = self._extended(planned)
                if not planned.is_reached(self.progress):
                    feed = self._open_feed()
        return "length"

    def _after_step(self) -> str | None:
        """Log, evaluate and save where that is due; return the reason to end, None to continue."""
        with self.clock("optimizer"):
            if self.average is not None:
                self.average.update(self.progress.step)
            self.slimming.after_step(self.progress.step)
        self.clock.activity.step = self.progress.step
        self._notify("step", self.progress.step)
        if self.progress.step % self.config.train.log_every == 0:
            self._log()
        reason = None
        if self._is_due(self.config.train.eval_every):
            reason = self._evaluate()
        if self._is_due(self.config.checkpoint.every):
            self._save()
        reason = reason or self.strategy.members.ended()
        synchronised = self.progress.epoch_is_over or self.strategy.members.synchronises_at(self.progress.step - 1)
        if not reason and synchronised and self._stop.reached():
            self._save_and_stop()
        return reason

    def _is_due(self, every: int | Literal["epoch"]) -> bool:
        if every != "epoch":
            return self.progress.step % every == 0
        long = self.collector is None or self.collector.completes(self.config.train.eval_env_steps)
        return self.progress.epoch_is_over and long

    def _evaluate(self) -> str | None:
        """Evaluate and record the metrics; return the reason that they give to end the run."""
        self._record_evaluation()
        reason = self.evaluation.reason_to_end() if self.group.observes else None
        if reason:
            self.strategy.members.end(reason)
        return reason

    def _record_evaluation(self) -> None:
        """Evaluate, record the metrics, and save the model if it is the best one."""
        if not self.evaluation.run():
            return
        if self.sinks:
            values = {**self.evaluation.metrics, **self.evaluation.spent, **self.strategy.view.metrics()}
            self._notify("evaluation", {**self._position(), **values, **self.slimming.metrics()})
        if not self.slimming.is_complete(self.progress.step):
            return  # a better model that is not sparse yet is not the one that was asked for
        best = self.best.consider(self.evaluation.metrics, self.progress.step)
        if best is not None:
            self._save(best)

    def _log(self) -> None:
        """Record the training metrics since the previous record; collective."""
        loss = {}
        if not self.strategy.view.confidential:
            with self.accounting.control():
                loss = {LOSS: 0.0, **self.step.loss.mean(self.group.steps_with), **self._agent_figures()}
        self.step.loss.reset()
        rates = {"lr": self.step.rate, **self.accounting.log_rates()}
        noise = {} if self.noise is None or self.noise.value is None else {"noise_scale": self.noise.value}
        self._notify("train", {**self._position(), **loss, **noise, **rates})

    def _agent_figures(self) -> Record:
        """Return what agents count, averaged over the ranks that step together; collective."""
        return {} if self.collector is None else means(self.group.steps_with, self.collector.take_figures())

    def _position(self) -> Record:
        position: Record = {"step": self.progress.step, "epoch": self.progress.epoch + 1}
        return position if self.collector is None else {**position, "env_steps": self.progress.env_steps}

    def _notify(self, event: str, *arguments: Any) -> None:
        for sink in self.sinks:
            getattr(sink, event)(*arguments)

    def _save(self, best: Best | None = None) -> None:
        """Save this step unless it is saved; `best` is the mark if the model is the best one."""
        is_saved = self._saved == self.progress.step
        if self.checkpoints is None or not self.group.observes or (is_saved and best is None):
            return
        self._saved = self.progress.step
        self.clock.enter("checkpoint")
        with self.accounting.control():
            keep, comm = self.config.checkpoint.keep, self.group.steps_with
            checkpoint.save(self.state.snapshot(), self.checkpoints, self.progress.step, keep, comm, best)

    def _is_asked_to_stop(self) -> bool:
        return self.stop() or self.strategy.members.stopped

    def _save_and_stop(self) -> NoReturn:
        self.accounting.end_steps()
        self._save()
        raise Stopped(f"stopped by a signal after step {self.progress.step}; a checkpoint of it is saved")

    def _finish(self) -> None:
        """Let the strategy finish, then evaluate and save the final model; collective."""
        self._stop.close()
        self.accounting.end_steps()
        if self.strategy.finish():
            self.evaluation.step = self._saved = -1
        self.slimming.finish()
        if self.strategy.members.stopped:
            self._save_and_stop()
        if self.evaluation.step != self.progress.step:
            self._record_evaluation()
        self._save()
        with self.accounting.control():
            self.of_ranks = self.group.gather(self._counts())

    def _counts(self) -> dict[str, int]:
        """Return what this rank counted, for the summary."""
        dropped, skipped = self.feeds.dropped, self.step.skipped
        return {"bytes": self.accounting.bytes_sent, "samples_dropped": dropped, "samples_skipped": skipped}

    def _leave(self) -> None:
        self.feeds.close()
        if self.collector is not None:
            self.collector.close()
        if self.player is not None:
            self.player.close()
        self.strategy.members.leave()
        self.execution.close()

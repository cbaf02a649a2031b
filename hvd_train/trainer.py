"""The training loop: the only caller of the hooks of a sync strategy."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hvd_train import checkpoint, schedule
from hvd_train.comm.base import Communicator, Work
from hvd_train.config import Config
from hvd_train.data.base import Dataset, Split
from hvd_train.errors import Diverged, Stopped, UserError
from hvd_train.loss import Loss, correct
from hvd_train.monitor.base import Record, Sink
from hvd_train.optimizer import ModelOptimizer
from hvd_train.precision import Precision
from hvd_train.sampler import Epoch, Sampler
from hvd_train.signals import StopRequest
from hvd_train.sync.base import SyncStrategy

DEFAULT_EPOCHS = 10
EVAL_BATCH = 256
STRATEGY = "strategy."


@dataclass
class Progress:
    """How far a run has come; all of it is in every checkpoint."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    samples: int = 0
    samples_in_epoch: int = 0
    best: float | None = None
    evaluations_without_improvement: int = 0


@dataclass
class Clock:
    """Seconds spent in each phase of training; which is the last, and how often one began."""

    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("data", "forward", "backward", "comm", "optimizer", "eval"), 0.0)
    )
    phase: str = "start"
    turn: int = 0

    def enter(self, phase: str) -> None:
        self.phase = phase
        self.turn += 1

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self.enter(phase)
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - begin


@dataclass
class Trainer:
    """Trains `model` on the rank's part of `data`; all collaborators are passed in.

    `comm` joins the ranks that take their steps together, which agree on lengths, metrics, stopping and checkpoints; it is
    this rank alone in asynchronous strategies, where only one rank has somebody to tell (`observed`).
    """

    config: Config
    comm: Communicator
    data: Dataset
    model: nn.Module
    loss: Loss
    optimizer: ModelOptimizer
    sampler: Sampler
    strategy: SyncStrategy
    precision: Precision
    sinks: Sequence[Sink] = ()
    checkpoints: Path | None = None
    stop: StopRequest = field(default_factory=StopRequest)
    observed: bool = True

    def __post_init__(self) -> None:
        self.progress = Progress()
        self.clock = Clock()
        self.metrics: dict[str, float] = {}
        self.control_bytes = 0
        self.bytes_of_ranks: list[int] = []
        self._saved = self._evaluated = -1
        self._flag: tuple[Tensor, Work] | None = None
        share = self.strategy.share(0)
        scale = share.workers if share and self.config.schedule.scale_by_world_size else 1
        self._rates = [group["lr"] * scale for group in self.optimizer.torch.param_groups]
        self._window = [0.0, 0.0]
        self.precision.scaler.agree_ = self.optimizer.agree_

    def run(self) -> str:
        """Train to the end and return why it came: 'length', 'early stop' or 'converged'; Stopped on a signal."""
        self.strategy.start(self.model)
        if self.strategy.serve():
            return "served"
        with self._control():
            epoch = self.sampler.epoch(self.progress.epoch)
        self._open(epoch)
        try:
            reason = self._train(epoch)
        except Stopped:
            self.strategy.leave()
            raise
        self._finish()
        self.strategy.leave()
        return reason

    def _finish(self) -> None:
        if self._flag:
            self._flag[1].wait()
        self.strategy.finish()
        if self._evaluated != self.progress.step:
            self._evaluate()
        self._save()
        with self._control():
            self.bytes_of_ranks = self.strategy.gather(self.bytes_sent)

    @property
    def bytes_sent(self) -> int:
        """What this rank's training sent: all but what metrics, stopping and checkpoints took."""
        return self.strategy.comm.bytes_sent - self.control_bytes

    @property
    def activity(self) -> tuple[int, str, int]:
        """For the heartbeat: step, phase, and a number that grows with each phase."""
        return self.progress.step, self.clock.phase, self.clock.turn

    @property
    def epochs(self) -> float:
        """Passes over the data so far, the present one by the share of it that is done."""
        return self.progress.epoch + self.progress.samples_in_epoch / max(1, len(self.data.train))

    @property
    def samples_per_second(self) -> float:
        """Over the training of this process, evaluations included."""
        return (self.progress.samples - self._samples_before) / (time.perf_counter() - self._began)

    def _open(self, epoch: Epoch) -> None:
        if epoch.steps == 0:
            raise UserError("data: the training set is empty")
        train = self.config.train
        self._epochs = None if train.steps else train.epochs or DEFAULT_EPOCHS
        self._total = train.steps or epoch.steps * (train.epochs or DEFAULT_EPOCHS)
        end = self.progress.step + max(0, self._total - self._position(epoch))
        title = f"{end} steps on {self.strategy.roles()}"
        self._tell("open", {"total_steps": end, "first_step": self.progress.step, "title": title})
        self._began, self._samples_before = time.perf_counter(), self.progress.samples
        self._logged = (self._began, self.progress.samples)

    def _position(self, epoch: Epoch) -> int:
        """Steps into the schedule. A run by epochs counts them as the present number of ranks would have taken them."""
        if self._epochs is None:
            return self.progress.step
        return self.progress.epoch * epoch.steps + self.progress.step_in_epoch

    def _train(self, epoch: Epoch) -> str:
        while not self._ended():
            self._go_on_in(epoch)
            while self.progress.step_in_epoch < epoch.steps and not self._ended():
                self._step(epoch)
                reason = self._after_step(epoch)
                if reason:
                    return reason
            if self.progress.step_in_epoch >= epoch.steps:
                self._next_epoch()
                with self._control():
                    epoch = epoch if self._ended() else self.sampler.epoch(self.progress.epoch)
        return "length"

    def _ended(self) -> bool:
        if self._epochs is None:
            return self.progress.step >= self._total
        return self.progress.epoch >= self._epochs

    def _next_epoch(self) -> None:
        self.progress.epoch += 1
        self.progress.step_in_epoch = self.progress.samples_in_epoch = 0

    def _go_on_in(self, epoch: Epoch) -> None:
        """Under another number of ranks a step holds other samples: go on at the last boundary not after the old one."""
        target = self.progress.samples_in_epoch
        self.progress.step_in_epoch = self.progress.samples_in_epoch = 0
        for step in range(epoch.steps):
            if self.progress.samples_in_epoch + epoch.samples(step) > target:
                return
            self.progress.step_in_epoch += 1
            self.progress.samples_in_epoch += epoch.samples(step)

    def _step(self, epoch: Epoch) -> None:
        position = self.progress.step_in_epoch
        batches, samples = epoch.micro_batches(position), epoch.samples(position)
        rate = schedule.factor(self.config.schedule, self._position(epoch), self._total)
        for group, base in zip(self.optimizer.torch.param_groups, self._rates, strict=True):
            group["lr"] = base * rate
        if isinstance(self.optimizer.torch, torch.optim.LBFGS):
            self.optimizer.torch.step(lambda: self.strategy.objective(self._gradients(batches, samples)))
        else:
            self._gradients(batches, samples)
            with self.clock("optimizer"):
                self.precision.scaler.step(self.optimizer.torch)
                self.precision.scaler.update()
        with self.clock("comm"):
            self.strategy.on_parameters(self.progress.step)
        self.progress.step += 1
        self.progress.step_in_epoch += 1
        self.progress.samples += samples
        self.progress.samples_in_epoch += samples

    def _gradients(self, batches: list[Tensor], samples: int) -> float:
        """Set the gradients of the step; return this rank's part of what it minimises."""
        self.model.zero_grad(set_to_none=True)
        self.model.train()
        own = sum(map(len, batches))
        divisor = self.strategy.divisor(own, samples)
        total = 0.0
        for number, indices in enumerate(batches, 1):
            with self.clock("data"):
                x, y = self.data.train.batch(indices)
                x, y = self.precision.inputs(x), y.to(x.device)
            with self.clock("forward"), self.precision.forward():
                loss = self.loss(self.model(x), y)
            total += self._finite(float(loss.detach()), number)
            if number == len(batches):
                self.optimizer.adopt()
                self.strategy.on_backward(self.progress.step)
            with self.clock("backward"):
                self.precision.scaler.scale(loss / divisor).backward()  # type: ignore[no-untyped-call]
        with self.clock("comm"):
            self.strategy.on_gradients(self.progress.step)
        self._clip()
        self._window[0] += total
        self._window[1] += own
        return total / divisor

    def _finite(self, loss: float, micro_batch: int) -> float:
        if math.isfinite(loss):
            return loss
        at = f"step {self.progress.step + 1} (epoch {self.progress.epoch + 1}, micro-batch {micro_batch})"
        rate = self.optimizer.torch.param_groups[0]["lr"]
        raise Diverged(
            f"the loss became {loss} at {at} with learning rate {rate:g}; "
            "a lower optimizer.lr, train.clip_norm or schedule.warmup_steps usually mends it"
        )

    def _clip(self) -> None:
        if self.config.train.clip_norm is not None:
            with self.clock("optimizer"):
                if self.precision.scaler.is_enabled():
                    self.precision.scaler.unscale_(self.optimizer.torch)
                self.optimizer.clip(self.config.train.clip_norm)

    def _after_step(self, epoch: Epoch) -> str | None:
        """Metrics, evaluation and checkpoint where they are due; the reason to end, if there is one."""
        ended_epoch = self.progress.step_in_epoch >= epoch.steps
        self._tell("step", self.progress.step)
        if self.progress.step % self.config.train.log_every == 0:
            self._log()
        reason = None
        if self._due(self.config.train.eval_every, ended_epoch):
            self._evaluate()
            reason = self._reason_to_end()
        if self._due(self.config.checkpoint.every, ended_epoch):
            self._save()
        reason = reason or self.strategy.ended()
        meets = ended_epoch or self.strategy.meets(self.progress.step - 1)
        if not reason and meets and self._stop_agreed():
            self._save()
            raise Stopped(f"stopped by a signal after step {self.progress.step}; a checkpoint of it is saved")
        return reason

    def _due(self, every: int | Literal["epoch"], ended_epoch: bool) -> bool:
        return ended_epoch if every == "epoch" else self.progress.step % every == 0

    def _stop_agreed(self) -> bool:
        """Whether any rank had a signal before its last step.

        The question is asked at the end of a step in which ranks meet and the answer read at the end of the next such one:
        nobody waits for it, and all ranks stop after the same step.
        """
        if self._flag:
            flag, work = self._flag
            self._flag = None
            work.wait()
            if flag.item():
                return True
        flag = torch.tensor([int(self.stop.signal > 0)], dtype=torch.int32)
        with self._control():
            self._flag = (flag, self.comm.all_reduce_async_(flag, "max"))
        return False

    def _log(self) -> None:
        with self._control():
            loss, count = self._summed(self._window)
        now, samples = time.perf_counter(), self.progress.samples
        before, samples_before = self._logged
        self._window, self._logged = [0.0, 0.0], (now, samples)
        record = {
            **self._where(),
            "loss": loss / max(count, 1),
            "lr": self.optimizer.torch.param_groups[0]["lr"],
            "samples_per_second": (samples - samples_before) / (now - before),
        }
        self._tell("train", record)

    def _where(self) -> Record:
        return {"step": self.progress.step, "epoch": self.progress.epoch + 1}

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Metrics over the held-out samples, each rank taking every size-th of them."""
        split = self.data.test
        if not len(split) or not self.observed:
            return
        with self.clock("eval"), self._control(), self._agreed():
            self.model.eval()
            sums = self._sums(split, torch.arange(self.comm.rank, len(split), self.comm.size))
            loss, right, count = self._summed(sums)
        self.metrics = {"loss": loss / count}
        if self.data.spec.task != "regression":
            self.metrics["accuracy"] = right / count
        self._evaluated = self.progress.step
        self._tell("evaluation", {**self._where(), **self.metrics})

    def _sums(self, split: Split, indices: Tensor) -> list[float]:
        loss = right = 0.0
        for chunk in indices.split(EVAL_BATCH):
            if not len(chunk):
                continue
            self.clock.enter("eval")
            x, y = split.batch(chunk)
            x, y = self.precision.inputs(x), y.to(self.precision.device)
            with self.precision.forward():
                outputs = self.model(x)
                loss += float(self.loss(outputs, y))
            if self.data.spec.task != "regression":
                right += float(correct(outputs, y))
        return [loss, right, len(indices)]

    def _reason_to_end(self) -> str | None:
        """Equal on every rank, since the metrics are."""
        converge, early = self.config.train.converge, self.config.train.early_stop
        if converge and self._metric(converge.metric, "converge") >= converge.value * _sense(converge.metric):
            return "converged"
        if not early:
            return None
        value = self._metric(early.metric, "early_stop")
        if self.progress.best is None or value > self.progress.best + early.min_delta:
            self.progress.best, self.progress.evaluations_without_improvement = value, 0
        else:
            self.progress.evaluations_without_improvement += 1
        return "early stop" if self.progress.evaluations_without_improvement >= early.patience else None

    def _metric(self, name: str, owner: str) -> float:
        """The metric, turned so that more is better."""
        if name not in self.metrics:
            known = ", ".join(self.metrics) or "none, for there are no held-out samples"
            raise UserError(f"train.{owner}.metric: no metric '{name}' in the evaluation (choices: {known})")
        return self.metrics[name] * _sense(name)

    @contextmanager
    def _mean_buffers(self) -> Iterator[None]:
        """The mean of the ranks' floating buffers (running statistics), taken back after: training keeps each its own."""
        own = [b for b in self.model.buffers() if b.is_floating_point()]
        before = [b.clone() for b in own]
        for b in own:
            self.comm.all_reduce_(b, "mean")
        try:
            yield
        finally:
            for b, old in zip(own, before, strict=True):
                b.copy_(old)

    def _summed(self, values: Sequence[float]) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64)
        self.comm.all_reduce_(total, "sum")
        return [float(v) for v in total]

    @contextmanager
    def _agreed(self) -> Iterator[None]:
        """The model that ranks agree on."""
        with self.strategy.agreed(), self._mean_buffers():
            yield

    @contextmanager
    def _control(self) -> Iterator[None]:
        """What is sent meanwhile is not training's."""
        before = self.strategy.comm.bytes_sent
        try:
            yield
        finally:
            self.control_bytes += self.strategy.comm.bytes_sent - before

    def _tell(self, event: str, *arguments: Any) -> None:
        for sink in self.sinks:
            getattr(sink, event)(*arguments)

    def _save(self) -> None:
        if self.checkpoints is None or not self.observed or self._saved == self.progress.step:
            return
        self._saved = self.progress.step
        self.clock.enter("checkpoint")
        with self._control():
            kept = self.config.checkpoint.keep
            checkpoint.save(self.snapshot(), self.checkpoints, self.progress.step, kept, self.comm)

    def snapshot(self) -> checkpoint.Snapshot:
        """Everything that `restore` needs to go on bitwise as if nothing had happened."""
        with torch.no_grad(), self._agreed():
            model = {name: t.detach().clone() for name, t in self.model.state_dict().items()}
        tensors: dict[str, Tensor] = {}
        state = {
            "progress": asdict(self.progress),
            "world_size": self.comm.size,
            "optimizer": checkpoint.pack(self.optimizer.state(), "optimizer", tensors),
            "scaler": checkpoint.pack(self.precision.scaler.state_dict(), "scaler", tensors),
            "strategy": checkpoint.pack(self.strategy.state_dict(), "strategy", tensors),
        }
        mine = {
            **_generators(),
            **{f"buffer.{n}": b for n, b in self.model.named_buffers()},
            **{STRATEGY + n: t for n, t in self.strategy.rank_state().items()},
        }
        return checkpoint.Snapshot(model, tensors, state, mine)

    def restore(self, snapshot: checkpoint.Snapshot) -> None:
        """Go on from `snapshot`; a rank that it does not know keeps its own generators and takes the mean buffers."""
        try:
            self.model.load_state_dict(snapshot.model)
        except RuntimeError as error:
            raise UserError(f"--resume: the checkpoint is of another model: {error}") from None
        self.progress = Progress(**snapshot.state["progress"])
        self._saved = self.progress.step
        self.optimizer.load_state(checkpoint.unpack(snapshot.state["optimizer"], snapshot.optimizer))
        self.precision.scaler.load_state_dict(checkpoint.unpack(snapshot.state["scaler"], snapshot.optimizer))
        self.strategy.load_state_dict(checkpoint.unpack(snapshot.state["strategy"], snapshot.optimizer))
        if snapshot.state["world_size"] == self.comm.size and snapshot.mine:
            for name, buffer in self.model.named_buffers():
                buffer.copy_(snapshot.mine[f"buffer.{name}"])
            _set_generators(snapshot.mine)
            own = {n.removeprefix(STRATEGY): t for n, t in snapshot.mine.items() if n.startswith(STRATEGY)}
            self.strategy.load_rank_state(own)


def _sense(metric: str) -> int:
    return -1 if metric == "loss" else 1


def _generators() -> dict[str, Tensor]:
    python = random.getstate()
    legacy: Any = np.random.get_state(legacy=True)
    _, keys, position, *_ = legacy
    states = {
        "rng.torch": torch.get_rng_state(),
        "rng.python": torch.tensor(python[1], dtype=torch.int64),
        "rng.numpy": torch.from_numpy(np.append(keys, position).astype(np.int64)),
    }
    if torch.cuda.is_available():
        states["rng.cuda"] = torch.cuda.get_rng_state()
    return states


def _set_generators(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["rng.torch"])
    random.setstate((3, tuple(states["rng.python"].tolist()), None))
    keys = states["rng.numpy"].numpy()
    np.random.set_state(("MT19937", keys[:-1].astype(np.uint32), int(keys[-1]), 0, 0.0))
    if "rng.cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["rng.cuda"])

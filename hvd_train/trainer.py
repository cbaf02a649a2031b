"""The training loop: the only caller of the hooks of a sync strategy."""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from hvd_train import checkpoint, generators, model_state, packing, resume, schedule
from hvd_train.clock import Clock
from hvd_train.comm.base import Communicator, Work, broadcast_json, gather_json
from hvd_train.config import Config
from hvd_train.data.base import Dataset, Split
from hvd_train.errors import Diverged, Stopped, UserError
from hvd_train.execution import Execution
from hvd_train.fusion import REDUCER
from hvd_train.model_state import is_plain
from hvd_train.monitor.base import Record, Sink
from hvd_train.optimizer import ModelOptimizer, State, builder, entries
from hvd_train.precision import Precision
from hvd_train.sampler import Epoch, Sampler
from hvd_train.signals import StopRequest
from hvd_train.sync.base import OPTIMIZER, SyncStrategy

DEFAULT_EPOCHS = 10
LOWER_RATE = "a lower optimizer.lr, train.clip_norm or schedule.warmup_steps usually mends it"
BUFFER, SCALER, STRATEGY, SAMPLER, OTHERS = "buffer.", "scaler.", "strategy.", "sampler.", "others"


def _to_stderr(text: str) -> None:
    print(f"ddl: warning: {text}", file=sys.stderr, flush=True)


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
    seconds: float = 0.0
    """Of training before this process began, as all ranks agreed."""
    bytes_sent: int = 0
    """By the training of all ranks before this process began."""


@dataclass
class Trainer:
    """Trains `model` on the rank's part of `data`; all collaborators are passed in.

    `comm` joins the ranks that take their steps together, which agree on metrics, stopping and checkpoints: `strategy.world`,
    or all ranks where that joins those of one part of the model. It is this rank alone in asynchronous strategies, where only
    one rank has somebody to tell (`observed`).
    """

    config: Config
    comm: Communicator
    data: Dataset
    execution: Execution
    optimizer: ModelOptimizer
    sampler: Sampler
    strategy: SyncStrategy
    precision: Precision
    sinks: Sequence[Sink] = ()
    checkpoints: Path | None = None
    stop: StopRequest = field(default_factory=StopRequest)
    observed: bool = True

    def __post_init__(self) -> None:
        self.model = self.execution.model
        self.progress = Progress()
        self.metrics: dict[str, float] = {}
        self.spent: dict[str, float] = {"seconds": 0.0, "bytes_sent": 0}
        self.steps_per_second = 0.0
        """Of this rank, until it had nothing left to do."""
        self.control_bytes = 0
        self.bytes_of_ranks: list[int] = []
        self._own_buffers: dict[str, Tensor] = {}
        self._own_others: dict[str, Any] = {}
        """After resuming: running statistics and extra state, which a start makes equal."""
        self._saved = self._evaluated = -1
        self._began: float | None = None
        self._steps_of_epoch: int | None = None
        """In the epoch under way, once there is one."""
        self._resumed: checkpoint.Snapshot | None = None
        self._warn: Callable[[str], None] = _to_stderr
        self._flag: tuple[Tensor, Work] | None = None
        scale = self.strategy.workers if self.config.schedule.scale_by_world_size else 1
        self._rates = [group["lr"] * scale for group in self.optimizer.torch.param_groups]
        self._window = [0.0, 0.0]
        self.precision.scaler.agree_ = self.optimizer.agree_
        self.strategy.score = self._score if len(self.data.test) else None

    def run(self) -> str:
        """Train to the end and return why it came: 'length', 'early stop' or 'converged'; Stopped on a signal."""
        self.strategy.start(self.model)
        self._settle()
        model_state.fit_buffers(self.model, self._own_buffers)
        for name, own in self._own_buffers.items():
            self.model.get_buffer(name).copy_(own)
        model_state.load_others(self.model, self._own_others)
        self.clock.enter("serve")
        if self.strategy.serve():
            return "served"
        self.execution.open()
        with self._control():
            epoch = self.sampler.epoch(self.progress.epoch)
        self._open(epoch)
        try:
            reason = self._train(epoch)
            self._finish()
        except Stopped:
            self._leave()
            raise
        self._leave()
        return reason

    def _leave(self) -> None:
        self.strategy.leave()
        self.execution.close()

    def _finish(self) -> None:
        if self._flag:
            self._flag[1].wait()
        self._note_rate()
        if self.strategy.finish():
            self._evaluated = self._saved = -1
        if self.strategy.stopped:
            self._stop()
        if self._evaluated != self.progress.step:
            self._evaluate()
        self._save()
        with self._control():
            split = self.comm.size > self.strategy.comm.size
            gather = partial(gather_json, self.comm) if split else self.strategy.gather
            self.bytes_of_ranks = gather(self.bytes_sent)

    @property
    def clock(self) -> Clock:
        return self.execution.clock

    @clock.setter
    def clock(self, clock: Clock) -> None:
        self.execution.clock = clock

    @property
    def _seconds(self) -> float:
        """Of training in this process, evaluations that all ranks wait for left out."""
        if self._began is None:
            return 0.0
        alone = self.comm.size < self.strategy.comm.size
        return time.perf_counter() - self._began - (0.0 if alone else self.clock.seconds["eval"])

    @property
    def bytes_sent(self) -> int:
        """What this rank's training sent: all but what its start, metrics, stopping and checkpoints took."""
        return 0 if self._began is None else self._sent - self.control_bytes

    @property
    def _sent(self) -> int:
        return self.strategy.comm.bytes_sent + self.execution.bytes_sent

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
        assert self._began is not None, "asked after the run"
        return (self.progress.samples - self._samples_before) / (time.perf_counter() - self._began)

    def _open(self, epoch: Epoch) -> None:
        if epoch.steps == 0:
            raise UserError("data: the training set is empty")
        train = self.config.train
        self._epochs = None if train.steps else train.epochs or DEFAULT_EPOCHS
        with self._control():
            self._full_epoch = epoch.steps if train.steps or not self.progress.epoch else self.sampler.plan(0).steps
        self._total = train.steps or self._full_epoch * (train.epochs or DEFAULT_EPOCHS)
        end = self.progress.step + max(0, math.ceil(self._total - self._position(epoch)))
        title = f"{end} steps: {self.execution.roles(self.strategy.roles())}"
        self._tell("open", {"total_steps": end, "first_step": self.progress.step, "title": title})
        self._began, self._samples_before = time.perf_counter(), self.progress.samples
        self._steps_before, self.control_bytes = self.progress.step, self._sent
        self._logged = (self._began, self.progress.samples)

    def _position(self, epoch: Epoch) -> float:
        """Steps into the schedule, which never falls.

        A run by epochs counts each as if it had the steps of the first, under the present number of ranks.
        """
        if self._epochs is None:
            return self.progress.step
        done = self.progress.step_in_epoch
        within = done if epoch.steps == self._full_epoch else done * self._full_epoch / epoch.steps
        return self.progress.epoch * self._full_epoch + within

    def _train(self, epoch: Epoch) -> str:
        while not self._ended():
            self._steps_of_epoch = epoch.steps
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

    @property
    def _computed(self) -> float:
        """Seconds in which this rank computed, and waited for no other."""
        return self.clock.computing - self.strategy.waited

    def _step(self, epoch: Epoch) -> None:
        position, before = self.progress.step_in_epoch, self._computed
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
            if position + 1 >= epoch.steps:
                self.strategy.on_epoch(self.progress.epoch)
        self.sampler.record(self._computed - before, sum(map(len, batches)))
        self.progress.step += 1
        self.progress.step_in_epoch += 1
        self.progress.samples += samples
        self.progress.samples_in_epoch += samples

    def _gradients(self, batches: list[Tensor], samples: int) -> float:
        """Set the gradients of the step; return this rank's part of what it minimises."""
        self.model.zero_grad(set_to_none=True)
        self.model.train()
        self.precision.begin()
        own = sum(map(len, batches))
        divisor = self.strategy.divisor(own, samples)
        total = self.execution.gradients(batches, divisor, self._before_last_backward, self._finite)
        if own and self.execution.reports:
            self.strategy.on_loss(total / own, own)
        with self.clock("comm"):
            self.strategy.on_gradients(self.progress.step)
        self.execution.complete()
        self._clip()
        self._window[0] += total
        self._window[1] += own
        return total / divisor

    def _before_last_backward(self) -> None:
        self.optimizer.adopt()
        self.strategy.on_backward(self.progress.step)

    def _finite(self, loss: float, micro_batch: int) -> float:
        if math.isfinite(loss):
            return loss
        at = f"step {self.progress.step + 1} (epoch {self.progress.epoch + 1}, micro-batch {micro_batch})"
        rate = self.optimizer.torch.param_groups[0]["lr"]
        raise Diverged(f"the loss became {loss} at {at} with learning rate {rate:g}; {LOWER_RATE}")

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
            reason = self._reason_to_end() if self.observed else None
            if reason:
                self.strategy.end(reason)
        if self._due(self.config.checkpoint.every, ended_epoch):
            self._save()
        reason = reason or self.strategy.ended()
        meets = ended_epoch or self.strategy.meets(self.progress.step - 1)
        if not reason and meets and self._stop_agreed():
            self._stop()
        return reason

    def _note_rate(self) -> None:
        """Once: what follows the last step is not training."""
        if not self.steps_per_second:
            self.steps_per_second = (self.progress.step - self._steps_before) / self._seconds

    def _stop(self) -> NoReturn:
        self._note_rate()
        self._save()
        raise Stopped(f"stopped by a signal after step {self.progress.step}; a checkpoint of it is saved")

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
        flag = torch.tensor([int(self.stop.signal > 0 or self.strategy.stopped)], dtype=torch.int32)
        with self._control():
            self._flag = (flag, self.comm.all_reduce_async_(flag, "max"))
        return False

    def _log(self) -> None:
        with self._control():
            loss = {} if self.strategy.discreet else {"loss": self._mean_loss()}
        now, samples = time.perf_counter(), self.progress.samples
        before, samples_before = self._logged
        self._window, self._logged = [0.0, 0.0], (now, samples)
        record = {
            **self._where(),
            **loss,
            "lr": self.optimizer.torch.param_groups[0]["lr"],
            "samples_per_second": (samples - samples_before) / (now - before),
        }
        self._tell("train", record)

    def _mean_loss(self) -> float:
        """Over the samples of all ranks since the last line of training metrics; collective."""
        loss, count = self._summed(self._window)
        return loss / max(count, 1)

    def _where(self) -> Record:
        return {"step": self.progress.step, "epoch": self.progress.epoch + 1}

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Metrics over the held-out samples."""
        split = self.data.test
        if not len(split) or not self.observed:
            return
        self.spent = self._spent()
        seen = nullcontext() if self.strategy.evaluates_own else self._agreed()
        with self.clock("eval"), self._control(), seen:
            self.metrics = self._measured(split)
        if not math.isfinite(self.metrics["loss"]):
            raise Diverged(
                f"the held-out loss became {self.metrics['loss']} after step {self.progress.step}; {LOWER_RATE}"
            )
        self._evaluated = self.progress.step
        if self.sinks:
            self._tell("evaluation", {**self._where(), **self.metrics, **self.spent, **self.strategy.figures()})

    def _spent(self) -> dict[str, float]:
        """Seconds of training so far, and bytes that all ranks sent; one that goes alone takes others' for as many as its own.

        What earlier processes took, until the checkpoint that this one resumed from, counts too.
        """
        mean = torch.tensor([self._seconds, self.bytes_sent], dtype=torch.float64)
        with self._control():
            self.comm.all_reduce_(mean, "mean")
        ranks = max(self.comm.size, self.strategy.comm.size)
        seconds, sent = self.progress.seconds + float(mean[0]), self.progress.bytes_sent + round(float(mean[1]) * ranks)
        return {"seconds": seconds, "bytes_sent": sent}

    @torch.no_grad()
    def _score(self) -> float:
        with self._control():
            metrics = self._measured(self.data.test)
        return metrics.get("accuracy", -metrics["loss"])

    def _measured(self, split: Split) -> dict[str, float]:
        """Metrics of the model as it is on each rank, over every size-th sample of `split`."""
        self.model.eval()
        copies = self.strategy.world
        indices = torch.arange(copies.rank, len(split), copies.size)
        loss, right, count = self._summed([*self.execution.sums(split, indices), len(indices)])
        metrics = {"loss": loss / count}
        return metrics if self.data.spec.task == "regression" else {**metrics, "accuracy": right / count}

    def _reason_to_end(self) -> str | None:
        """Equal on every rank, since the metrics are."""
        limits = {"seconds": self.config.train.max_seconds, "bytes_sent": self.config.train.max_bytes}
        for name, most in limits.items():
            if most and self.spent[name] >= most:
                return f"{name} used up"
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
        """The mean of the ranks' running statistics, taken back after: training keeps each its own."""
        own = model_state.common_statistics(self.model, self.strategy.world)
        before = [b.clone() for b in own]
        for b in own:
            self.strategy.world.all_reduce_(b, "mean")
        try:
            yield
        finally:
            for b, old in zip(own, before, strict=True):
                b.copy_(old)

    def _summed(self, values: Sequence[float]) -> list[float]:
        """The sums over copies of the model, of each of which one rank reports."""
        total = torch.tensor(values, dtype=torch.float64) * self.execution.reports
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
        before = self._sent
        try:
            with self.strategy.comm.aside():
                yield
        finally:
            # Alone, a rank has nobody to agree with, and what it sends meanwhile another thread of it does.
            if self.comm.size > 1:
                self.control_bytes += self._sent - before

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
        """Everything that `restore` needs to go on bitwise as if nothing had happened; on rank 0 at least all of it."""
        with torch.no_grad(), self._agreed():
            whole = self.execution.state()
        tensors: dict[str, Tensor] = {}
        model = {name: value for name, value in whole.items() if is_plain(value)}
        others = {name: value for name, value in whole.items() if name not in model}
        discreet = self.strategy.discreet
        state = {
            "format": resume.FORMAT,
            "facts": self._facts(),
            "progress": asdict(self._progress_to_save()),
            "others": packing.pack(others, "others", tensors),
            "fusion_bytes": self.strategy.fusion_bytes,
            "optimizer": packing.pack(self.optimizer.state(), "optimizer", tensors),
            "scaler": packing.pack({} if discreet else self.precision.scaler.state_dict(), "scaler", tensors),
            "strategy": packing.pack(self.strategy.state_dict(), "strategy", tensors),
        }
        own = {
            **{BUFFER + n: b for n, b in self.model.named_buffers() if is_plain(b)},
            **packing.to_tensors(model_state.others(self.model), OTHERS),
            **{SCALER + n: torch.tensor(v) for n, v in self.precision.scaler.state_dict().items()},
        }
        mine = {
            **generators.state(),
            **({} if discreet else own),
            **{STRATEGY + n: t for n, t in self.strategy.rank_state().items()},
            **{SAMPLER + n: t for n, t in self.sampler.rank_state().items()},
        }
        return checkpoint.Snapshot(model, tensors, state, mine)

    def _progress_to_save(self) -> Progress:
        """At the end of an epoch the next one is under way: a run that resumes with other data must not repeat the old one."""
        spent = self._spent()
        progress = replace(self.progress, seconds=spent["seconds"], bytes_sent=int(spent["bytes_sent"]))
        if self._steps_of_epoch is None or progress.step_in_epoch < self._steps_of_epoch:
            return progress
        return replace(progress, epoch=progress.epoch + 1, step_in_epoch=0, samples_in_epoch=0)

    def _facts(self) -> resume.Facts:
        """What `resume.compare` compares."""
        parallel, labels = self.config.parallel, self.data.train.labels
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        together = self.config.optimizer.name == "LBFGS"
        found = {
            "ranks": self.strategy.comm.size * parallel.pipeline * parallel.tensor,
            "trained": list(trained),
            "trained.elements": sum(p.numel() for p in trained.values()) if together else None,
            "data.samples": len(labels),
            "data.labels": self._labels,
        }
        return resume.facts(self.config, found)

    @cached_property
    def _labels(self) -> str:
        """A digest of the training samples' labels."""
        labels = self.data.train.labels.detach().cpu().contiguous()
        return hashlib.sha256(labels.view(torch.uint8).numpy().tobytes()).hexdigest()

    def restore(self, snapshot: checkpoint.Snapshot, warn: Callable[[str], None] = _to_stderr) -> None:
        """Go on from `snapshot` with what of it fits this run, as `resume.RULES` say; rank 0 warns of the rest.

        UserError, before anything has changed, where it is of another model or its contents are not as `snapshot` writes them.
        Collective.
        """
        self._warn = warn if self.comm.rank == self.strategy.comm.rank == 0 else lambda text: None
        with resume.reading(snapshot.where):
            was = resume.facts_of(snapshot.state, snapshot.model, now := self._facts())
            if self.strategy.promises_privacy:
                resume.check_owners(was, now)
            verdict = resume.compare(was, now)
            self._load_model(snapshot, was.get("train.precision") != now["train.precision"])
            warnings = [*verdict.warnings, *self._load_optimizer(snapshot, verdict, was, now)]
            self._load_agreed(snapshot, verdict)
            if snapshot.mine:
                self._load_own(snapshot.mine, verdict)
        for text in warnings:
            self._warn(f"--resume: {text}")
        self._resumed, self._saved = snapshot, self.progress.step

    def _load_model(self, snapshot: checkpoint.Snapshot, may_convert: bool) -> None:
        model_state.fit_buffers(self.model, snapshot.model)
        here = {name: value for name, value in self.execution.state().items() if is_plain(value)}
        there = resume.difference(snapshot.model, here, may_convert=may_convert) if self.comm.rank == 0 else None
        differs = broadcast_json(self.comm, there)
        if differs:
            raise UserError(f"--resume: {snapshot.where} is of another model: {differs}")
        others = packing.unpack(snapshot.state["others"], snapshot.optimizer) if "others" in snapshot.state else {}
        self.execution.load_state({**snapshot.model, **others})

    def _load_optimizer(
        self, snapshot: checkpoint.Snapshot, verdict: resume.Verdict, was: resume.Facts, now: resume.Facts
    ) -> list[str]:
        """What there is to warn of."""
        state: State = packing.unpack(snapshot.state["optimizer"], snapshot.optimizer)
        if "optimizer" in verdict.anew:
            return []
        build = builder(self.config.optimizer, self.config.train.precision)
        wanted = entries(build, {name: snapshot.model[name] for name in state}, self.precision.device)
        fitting, missing = resume.fitting(state, wanted)
        self.optimizer.load_state(fitting)
        if missing:
            text = f"the checkpoint has no {missing}, which {now['optimizer.name']} needs"
            return [f"{text}: {resume.PARTS['optimizer']} begins anew"]
        new = resume.newly_trained(was, now)
        return [new] if new else []

    def _load_agreed(self, snapshot: checkpoint.Snapshot, verdict: resume.Verdict) -> None:
        """What all ranks have alike."""
        self.progress = _progress(snapshot.state["progress"])
        if "epoch" in verdict.anew:
            self.progress.step_in_epoch = self.progress.samples_in_epoch = 0
        if "best" in verdict.anew:
            self.progress.best, self.progress.evaluations_without_improvement = None, 0
        scaler = packing.unpack(snapshot.state["scaler"], snapshot.optimizer)
        if "scaling" not in verdict.anew and scaler:
            self.precision.scaler.load_state_dict(scaler)
        kept = "strategy" not in verdict.anew
        self.strategy.load_state_dict(packing.unpack(snapshot.state["strategy"], snapshot.optimizer) if kept else {})

    def _load_own(self, mine: dict[str, Tensor], verdict: resume.Verdict) -> None:
        """What is this rank's own."""
        if "statistics" not in verdict.anew:
            self._own_buffers = _with_prefix(BUFFER, mine)
            self._own_others = packing.from_tensors(mine, OTHERS) if OTHERS in mine else {}
        if "generators" not in verdict.anew:
            generators.load(mine)
        scaler = {name: t.item() for name, t in _with_prefix(SCALER, mine).items()}
        if not {"scaling", "replicas"} & verdict.anew and scaler:
            self.precision.scaler.load_state_dict(scaler)
        if "replicas" not in verdict.anew:
            # Format 1 numbers buckets without a prefix.
            named = _with_prefix(STRATEGY, mine).items()
            own = {REDUCER + name if name[0].isdigit() else name: t for name, t in named}
            dropped = {OPTIMIZER: "optimizer", REDUCER: "residuals"}
            gone = tuple(prefix for prefix, part in dropped.items() if part in verdict.anew)
            self.strategy.load_rank_state({name: t for name, t in own.items() if not name.startswith(gone)})
        if "speeds" not in verdict.anew:
            self.sampler.load_rank_state(_with_prefix(SAMPLER, mine))

    def _settle(self) -> None:
        """After resuming: warn of what the strategy could not take over, and put other branches' checkpoints aside."""
        if self._resumed is None:
            return
        for text in self.strategy.begun_anew:
            self._warn(f"--resume: {text}")
        if self.checkpoints is not None and self.observed and self.comm.rank == 0:
            for text in checkpoint.put_aside(self.checkpoints, self._resumed.folder):
                self._warn(f"--resume: {text}")


def _with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _progress(saved: dict[str, Any]) -> Progress:
    """TypeError where a value is no number, KeyError where the step is missing."""
    known = {"step": saved["step"]} | {
        field.name: saved[field.name] for field in fields(Progress) if field.name in saved
    }
    wrong = [name for name, value in known.items() if not isinstance(value, int | float | None)]
    if wrong:
        raise TypeError(f"progress.{wrong[0]} is {known[wrong[0]]!r}")
    return Progress(**known)


def _sense(metric: str) -> int:
    return -1 if metric == "loss" else 1

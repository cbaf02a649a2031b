"""What a checkpoint holds of a run, and how a run takes it over."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hvd_train.agents.collector import Collector
from hvd_train.comm.objects import broadcast_json
from hvd_train.compute.execution import Execution
from hvd_train.compute.precision import Precision
from hvd_train.config.schema import Config
from hvd_train.data.base import Dataset
from hvd_train.errors import UserError
from hvd_train.gradients.optimizer import ModelOptimizer, State, builder, entries
from hvd_train.gradients.reduction import REDUCER
from hvd_train.slim.slimming import Slimming
from hvd_train.state import generators, model_state, packing
from hvd_train.state.digest import digest
from hvd_train.state.model_state import is_plain
from hvd_train.state.saved import reading
from hvd_train.sync.base import SyncStrategy
from hvd_train.sync.view import OPTIMIZER
from hvd_train.training import resume
from hvd_train.training.accounting import Accounting
from hvd_train.training.agreed import agreed
from hvd_train.training.checkpoint import Snapshot
from hvd_train.training.ema import ParameterAverage
from hvd_train.training.feed import Feeds
from hvd_train.training.group import Group
from hvd_train.training.progress import Progress

BUFFER, SCALER, STRATEGY, SAMPLER, AVERAGE, SLIMMING, COLLECTOR = (
    "buffer.",
    "scaler.",
    "strategy.",
    "sampler.",
    "average.",
    "slimming.",
    "collector.",
)
OTHERS = "others"
"""Prefixes of the names of a rank's own tensors; OTHERS is the whole name."""


class RunState:
    """The state of a run. `snapshot` saves it; `restore` and `restore_statistics` restore it."""

    def __init__(
        self,
        config: Config,
        data: Dataset,
        feeds: Feeds,
        execution: Execution,
        optimizer: ModelOptimizer,
        strategy: SyncStrategy,
        precision: Precision,
        group: Group,
        progress: Progress,
        accounting: Accounting,
        average: ParameterAverage | None,
        slimming: Slimming,
        collector: Collector | None,
    ) -> None:
        self._config, self._data, self._execution, self._optimizer = config, data, execution, optimizer
        self._feeds, self._strategy, self._view = feeds, strategy, strategy.view
        self._scaler, self._device = precision.scaler, precision.device
        self._group, self._progress, self._accounting = group, progress, accounting
        self._model, self._average, self._slimming = execution.model, average, slimming
        self._collector = collector
        self._buffers: dict[str, Tensor] = {}
        self._others: dict[str, Any] = {}

    def snapshot(self) -> Snapshot:
        """Return all state that a run needs to continue bitwise.

        The result is complete on rank 0 at least. The call is collective.
        """
        with torch.no_grad(), agreed(self._model, self._view, self._group.evaluates_with):
            whole, averaged = self._execution.state(), self._averaged()
        spent = self._accounting.spent()
        tensors: dict[str, Tensor] = {}
        plain = {name: value for name, value in whole.items() if is_plain(value)}
        others = {name: value for name, value in whole.items() if name not in plain}
        scaler = {} if self._view.confidential else self._scaler.state_dict()
        state = {
            "format": resume.FORMAT,
            "facts": self._facts(),
            "progress": self._progress.to_save(spent["seconds"], int(spent["bytes_sent"])),
            "others": packing.pack(others, "others", tensors),
            "fusion_bytes": self._strategy.fusion_bytes,
            "optimizer": packing.pack(self._optimizer.state(), "optimizer", tensors),
            "scaler": packing.pack(scaler, "scaler", tensors),
            "strategy": packing.pack(self._view.state_dict(), "strategy", tensors),
            "slimming": packing.pack(self._slimming.state(), "slimming", tensors),
        }
        return Snapshot(plain, tensors, state, self._own_state(), averaged)

    def restore(self, snapshot: Snapshot) -> list[str]:
        """Restore the parts of `snapshot` that fit this run, by `resume.RULES`.

        Return a warning for each part that does not fit. Raise UserError, before anything has
        changed, if the checkpoint is of another model or its contents have another form than those
        of `snapshot`. The call is collective.
        """
        with reading(snapshot.where):
            was = resume.facts_of(snapshot.state, snapshot.model, now := self._facts())
            if self._view.guarantees_privacy:
                resume.check_owners(was, now)
            verdict = resume.compare(was, now)
            warnings = [
                *verdict.warnings,
                *self._load_model(snapshot, was.get("train.precision") != now["train.precision"]),
                *self._load_optimizer(snapshot, verdict, was, now),
            ]
            self._load_common(snapshot, verdict)
            if snapshot.mine:
                self._load_own(snapshot.mine, verdict)
        return warnings

    def restore_statistics(self) -> None:
        """Restore this rank's running statistics and extra state after `SyncStrategy.start`."""
        model_state.fit_buffers(self._model, self._buffers)
        for name, value in self._buffers.items():
            self._model.get_buffer(name).copy_(value)
        model_state.load_others(self._model, self._others)

    def _averaged(self) -> dict[str, Tensor]:
        """Return the whole model with averaged parameters; collective."""
        if self._average is None:
            return {}
        with self._average.shown():
            return {name: value for name, value in self._execution.state().items() if is_plain(value)}

    def _own_state(self) -> dict[str, Tensor]:
        """Return what differs between ranks."""
        statistics = {
            **{BUFFER + n: b for n, b in self._model.named_buffers() if is_plain(b)},
            **packing.to_tensors(model_state.others(self._model), OTHERS),
            **{SCALER + n: torch.tensor(v) for n, v in self._scaler.state_dict().items()},
        }
        return {
            **generators.state(),
            **({} if self._view.confidential else statistics),
            **{STRATEGY + n: t for n, t in self._view.rank_state().items()},
            **{SAMPLER + n: t for n, t in self._feeds.rank_state().items()},
            **{AVERAGE + n: t for n, t in (self._average.rank_state() if self._average else {}).items()},
            **{SLIMMING + n: t for n, t in self._slimming.rank_state().items()},
            **{COLLECTOR + n: t for n, t in (self._collector.state() if self._collector else {}).items()},
        }

    def _facts(self) -> resume.Facts:
        """Return what `resume.compare` compares."""
        trained = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
        acts_on_all = self._config.optimizer.name == "LBFGS"
        measured = {
            "ranks": self._group.trains_with.size,
            "trained": list(trained),
            "trained.elements": sum(p.numel() for p in trained.values()) if acts_on_all else None,
            "data.samples": len(self._data.train.labels),
            "data.labels": self._labels,
        }
        return resume.facts(self._config, measured)

    @cached_property
    def _labels(self) -> str:
        return digest(self._data.train.labels)

    def _load_model(self, snapshot: Snapshot, may_convert: bool) -> list[str]:
        """Load the model and its averaged parameters; return the warnings."""
        model_state.fit_buffers(self._model, snapshot.model)
        here = {name: value for name, value in self._execution.state().items() if is_plain(value)}
        comm = self._group.steps_with
        found = resume.difference(snapshot.model, here, may_convert=may_convert) if comm.rank == 0 else None
        difference = broadcast_json(comm, found)
        if difference:
            raise UserError(f"--resume: {snapshot.where} is of another model: {difference}")
        others = packing.unpack(snapshot.state["others"], snapshot.optimizer) if "others" in snapshot.state else {}
        if self._average is not None and snapshot.averaged:
            with self._average.loading():
                self._execution.load_state({**snapshot.averaged, **others})
        self._execution.load_state({**snapshot.model, **others})
        if self._average is not None and not snapshot.averaged:
            return ["the checkpoint has no averaged parameters: train.ema begins with its parameters"]
        return []

    def _load_optimizer(
        self, snapshot: Snapshot, verdict: resume.Compatibility, was: resume.Facts, now: resume.Facts
    ) -> list[str]:
        """Load the optimizer's state if it fits; return the warnings."""
        state: State = packing.unpack(snapshot.state["optimizer"], snapshot.optimizer)
        if "optimizer" in verdict.reset:
            return []
        build = builder(self._config.optimizer, self._config.train.precision)
        groups = self._optimizer.groups
        wanted = entries(build, {name: snapshot.model[name] for name in state}, self._device, groups)
        fitting, missing = resume.fitting(state, wanted)
        self._optimizer.load_state(fitting)
        if missing:
            text = f"the checkpoint has no {missing}, which {now['optimizer.name']} needs"
            return [f"{text}: {resume.PARTS['optimizer']} is reset"]
        new = resume.newly_trained(was, now)
        return [new] if new else []

    def _load_common(self, snapshot: Snapshot, verdict: resume.Compatibility) -> None:
        """Load what is equal on all ranks."""
        self._progress.load(snapshot.state["progress"])
        if "epoch" in verdict.reset:
            self._progress.restart_epoch()
        if "best" in verdict.reset:
            self._progress.forget_best()
        scaler = packing.unpack(snapshot.state["scaler"], snapshot.optimizer)
        if "scaling" not in verdict.reset and scaler:
            self._scaler.load_state_dict(scaler)
        if "slimming" in snapshot.state:
            self._slimming.load_state(packing.unpack(snapshot.state["slimming"], snapshot.optimizer))
        kept = "strategy" not in verdict.reset
        self._view.load_state_dict(packing.unpack(snapshot.state["strategy"], snapshot.optimizer) if kept else {})

    def _load_own(self, mine: dict[str, Tensor], verdict: resume.Compatibility) -> None:
        """Load what is this rank's own."""
        if "statistics" not in verdict.reset:
            self._buffers = packing.with_prefix(BUFFER, mine)
            self._others = packing.from_tensors(mine, OTHERS) if OTHERS in mine else {}
        if "generators" not in verdict.reset:
            generators.load(mine)
        scaler = {name: t.item() for name, t in packing.with_prefix(SCALER, mine).items()}
        if not {"scaling", "replicas"} & verdict.reset and scaler:
            self._scaler.load_state_dict(scaler)
        if "replicas" not in verdict.reset:
            self._view.load_rank_state(_strategy_state(mine, verdict))
            if self._average is not None:
                self._average.load_rank_state(packing.with_prefix(AVERAGE, mine))
            self._slimming.load_rank_state(packing.with_prefix(SLIMMING, mine))
        if "speeds" not in verdict.reset:
            self._feeds.load_rank_state(packing.with_prefix(SAMPLER, mine))
        if "experience" not in verdict.reset and self._collector is not None:
            self._collector.load(packing.with_prefix(COLLECTOR, mine))


def _strategy_state(mine: dict[str, Tensor], verdict: resume.Compatibility) -> dict[str, Tensor]:
    """Return the strategy's tensors without the parts to reset."""
    # Checkpoints of format 1 number buckets without a prefix.
    named = packing.with_prefix(STRATEGY, mine).items()
    state = {REDUCER + name if name[0].isdigit() else name: t for name, t in named}
    owners: dict[str, resume.Part] = {OPTIMIZER: "optimizer", REDUCER: "residuals"}
    dropped = tuple(prefix for prefix, part in owners.items() if part in verdict.reset)
    return {name: t for name, t in state.items() if not name.startswith(dropped)}

"""The folder of a run, as its ranks write it: configuration, logs, metrics and summary."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hvd_train.comm.communicator import Communicator
from hvd_train.config.launch import GATE, Launch
from hvd_train.config.schema import Config
from hvd_train.data import preprocessing
from hvd_train.data.base import Dataset
from hvd_train.errors import UserError
from hvd_train.monitor.base import Sink
from hvd_train.monitor.sinks import jsonl, tensorboard, terminal
from hvd_train.rank import environment, events
from hvd_train.rank.gate import Gate
from hvd_train.rank.logs import Output
from hvd_train.rank.submitted import awaits_start, is_empty
from hvd_train.saved.run import ENVIRONMENT
from hvd_train.state.checkpoint_folder import CHECKPOINTS, folder_name
from hvd_train.text import strict_json
from hvd_train.training.loop import Trainer


class RunFolder:
    """The run folder at `launch.output`. Rank 0 makes it; every rank writes its log there."""

    def __init__(
        self, config: Config, launch: Launch, comm: Communicator, output: Output, stop: Callable[[], None]
    ) -> None:
        self._config, self._launch, self._comm, self._output, self._stop = config, launch, comm, output, stop
        self.path = Path(launch.output)
        self.is_open = False

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    def sinks(self) -> list[Sink]:
        """Return the sinks of this rank; only rank 0 has any."""
        if self._comm.rank != 0:
            return []
        stream = self._output.stream()
        gate = os.environ.get(GATE)
        return [
            jsonl.create(self.path),
            tensorboard.create(self.path),
            terminal.create(stream, self._launch.columns),
            *(section.create(self.path, expected=Sink) for section in self._config.monitor.sinks),
            *([Gate(Path(gate), self._stop)] if gate else []),
        ]

    def open(self, data: Dataset) -> None:
        """Make the folder and capture this rank's output in its log.

        Raise UserError if the folder is in use. The call is collective.
        """
        if self._comm.rank == 0:
            self._make(data)
        self.is_open = True
        self._comm.barrier()
        rank, tee = self._comm.rank, self._launch.tee
        self._output.capture(self.path / "logs" / f"rank-{rank}.log", rank, show=rank in tee, tag=len(tee) > 1)
        print(
            f"rank {rank} of {self._comm.size} on {socket.gethostname()}, {torch.get_num_threads()} threads",
            flush=True,
        )

    def close(self, trainer: Trainer, ended: str, lost: list[int]) -> None:
        """Write summary.json, then show it: a reader of the table finds the file.

        The call is collective unless ranks are `lost`.
        """
        if self._comm.rank == 0:
            summary = self._summary(trainer, ended)
            (self.path / "summary.json").write_text(strict_json.dumps(summary, indent=1) + "\n", encoding="utf-8")
            for sink in trainer.sinks:
                sink.close({**summary, "folder": str(self.path)})
        if not lost:
            self._comm.barrier()

    def _make(self, data: Dataset) -> None:
        may_exist = bool(self._launch.resume) or awaits_start(self.path) or is_empty(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=may_exist)
        except FileExistsError:
            raise UserError(f"--output: {self.path} exists on {socket.gethostname()}; give another folder") from None
        describe(self.path, self._config, self._launch, data)
        events.emit(self._output.errors, "folder", rank=0, path=str(self.path.absolute()))

    def _summary(self, trainer: Trainer, ended: str) -> dict[str, Any]:
        accounting = trainer.accounting
        return {
            "world_size": self._comm.size,
            "engine": self._launch.engine,
            "strategy": self._config.sync.label,
            **trainer.strategy.view.summary(),
            "ended": ended,
            "steps": trainer.progress.step,
            "epochs": trainer.epochs,
            "samples_per_second": accounting.samples_per_second,
            "steps_per_second": accounting.steps_per_second,
            **_environments(trainer),
            "eval": trainer.evaluation.metrics,
            **_best(trainer),
            **_compressed(trainer),
            "bytes_sent": accounting.bytes_sent,
            "bytes_of_ranks": [counted["bytes"] if counted else None for counted in trainer.of_ranks],
            **_lost_samples(trainer.of_ranks),
            "seconds": trainer.clock.seconds,
        }


def describe(folder: Path, config: Config, launch: Launch, data: Dataset) -> None:
    """Write what the commands that use the trained model read: config.json, data.json, environment.json."""
    whole = strict_json.dumps(config.model_dump(), indent=1)
    (folder / "config.json").write_text(whole + "\n", encoding="utf-8")
    preprocessing.save(folder, data)
    found = strict_json.dumps(environment.describe(launch), indent=1)
    (folder / ENVIRONMENT).write_text(found + "\n", encoding="utf-8")


def _best(trainer: Trainer) -> dict[str, Any]:
    """Return which checkpoint is the best, if the run keeps one."""
    mark = trainer.best.mark
    return {"best": {**vars(mark), "folder": f"{CHECKPOINTS}/{folder_name(mark.step)}"}} if mark else {}


def _environments(trainer: Trainer) -> dict[str, Any]:
    """Return the steps of the environments of all ranks, if an agent learns in some."""
    if trainer.collector is None:
        return {}
    return {
        "env_steps": trainer.progress.env_steps,
        "env_steps_per_second": trainer.accounting.env_steps_per_second,
    }


def _compressed(trainer: Trainer) -> dict[str, Any]:
    """Return the size of the model as its checkpoint has it, if the run compresses the model."""
    if not trainer.config.compress_model.active:
        return {}
    return {"compress_model": trainer.slimming.summary(trainer.model)}


def _lost_samples(of_ranks: list[dict[str, int] | None]) -> dict[str, int]:
    """Return how many samples of all ranks were damaged or left over, if some were."""
    names = ("samples_skipped", "samples_dropped")
    totals = {name: sum(counted[name] for counted in of_ranks if counted) for name in names}
    return {name: number for name, number in totals.items() if number}

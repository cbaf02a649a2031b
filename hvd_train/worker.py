"""The one place that wires a rank together: configuration, engine, data, model, strategy, trainer."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hvd_train import checkpoint, events, failures, loss, plugins, script
from hvd_train.clock import Clock
from hvd_train.comm._checked import checked
from hvd_train.comm._emulated import emulated
from hvd_train.comm.base import Communicator, gather_json
from hvd_train.config import Config, EmulationSection, Launch, parse_document
from hvd_train.data.base import Dataset
from hvd_train.errors import ExitCode, Stopped, UserError
from hvd_train.execution import Execution, WholeModel
from hvd_train.heartbeat import Heartbeat
from hvd_train.logs import Output
from hvd_train.monitor import jsonl, tensorboard, terminal
from hvd_train.monitor.base import Sink
from hvd_train.optimizer import builder
from hvd_train.parallel.division import divide
from hvd_train.parallel.layout import Mesh, layout
from hvd_train.precision import Precision
from hvd_train.sampler import Sampler
from hvd_train.signals import StopRequest
from hvd_train.straggler import SlowClock
from hvd_train.submitted import awaits_start
from hvd_train.sync.base import Context
from hvd_train.trainer import Trainer


@dataclass
class Parts:
    """What can go wrong because of the user's input, made before anything is written."""

    data: Dataset
    model: nn.Module
    loss: loss.Loss
    precision: Precision
    device: torch.device


def run_document(text: str) -> int:
    """Run one rank of the job that `text` (see `config.to_document`) describes; its exit code."""
    output = Output()
    stop = StopRequest()
    stop.listen()
    heartbeat = Heartbeat(output.errors, script.rank())
    try:
        config, launch = parse_document(text)
        comm = plugins.create("hvd_train.comm", launch.engine)
    except Exception as error:
        failures.report(error, -1, output.errors, None)
        return failures.exit_code(error)
    return _Rank(config, launch, comm, output, stop, heartbeat).run()


class _Rank:
    """One rank's life after its engine is up."""

    def __init__(
        self,
        config: Config,
        launch: Launch,
        comm: Communicator,
        output: Output,
        stop: StopRequest,
        heartbeat: Heartbeat,
    ) -> None:
        self.config, self.launch, self.comm, self.output, self.stop = config, launch, comm, output, stop
        self.heartbeat = heartbeat
        self.folder: Path | None = None
        self.clock: Clock | None = None
        self.lost: list[int] = []

    def run(self) -> int:
        self.heartbeat.rank = self.comm.rank
        events.emit(self.output.errors, "started", rank=self.comm.rank)
        try:
            self._check_world()
            if self.launch.emulate:
                self._emulate(self.launch.emulate)
            if self.launch.check_collectives:
                self.comm = checked(self.comm)
            code = self._run()
        except Exception as error:
            failures.report(error, self.comm.rank, self.output.errors, self.folder)
            self.output.release()
            self.comm.abort(failures.exit_code(error))
            raise
        self.heartbeat.stop()
        events.emit(self.output.errors, "done", rank=self.comm.rank, exit_code=int(code))
        self.output.release()
        if self.lost:
            os._exit(code)  # an engine's own end waits for all ranks, dead ones too
        self.comm.close()
        return code

    def _check_world(self) -> None:
        if self.comm.size != self.launch.world_size:
            raise UserError(
                f"this rank sees a world of {self.comm.size}, not of {self.launch.world_size}: launcher and MPI library "
                "do not know each other (an mpirun of another MPI, or srun with the wrong --mpi)"
            )

    def _emulate(self, section: EmulationSection) -> None:
        factor = section.factor if self.comm.rank == section.straggler else 1.0
        slow = emulated(self.comm, section.latency_ms, section.gbps, factor)
        self.comm, self.clock = slow, SlowClock(slow.pace)

    def _run(self) -> int:
        parts, snapshot, problem = None, None, None
        try:
            parts = build(self.config, self.comm)
        except UserError as error:
            problem = f"{error}"
        first = next((p for p in gather_json(self.comm, problem) if p), None)
        if first or parts is None:
            return self._refuse(str(first))
        if self.launch.resume:
            try:
                snapshot = checkpoint.load(Path(self.launch.resume), self.comm, self._warn)
            except UserError as error:
                return self._refuse(str(error))
        folder = Path(self.launch.output)
        try:
            trainer = assemble(self.config, self.comm, parts, self._sinks(), folder / "checkpoints", self.stop)
            if snapshot is not None:
                trainer.restore(snapshot, self._warn)
        except UserError as error:
            return self._refuse(str(error))
        return self._train(trainer, folder)

    def _refuse(self, problem: str) -> int:
        if self.comm.rank == 0:
            events.emit(self.output.errors, "refused", rank=0, message=problem, exit_code=int(ExitCode.BAD_INPUT))
        return ExitCode.BAD_INPUT

    def _warn(self, text: str) -> None:
        os.write(self.output.errors, f"ddl: warning: {text}\n".encode())

    def _train(self, trainer: Trainer, folder: Path) -> int:
        trainer.clock = self.clock or trainer.clock
        self._open_folder(folder)
        self.heartbeat.of = trainer
        trainer.strategy.report = self._report_lost
        try:
            ended, code = trainer.run(), ExitCode.OK
        except Stopped as stopped:
            ended, code = str(stopped), stopped.exit_code
        self.lost = trainer.strategy.lost
        self._close_folder(trainer, ended)
        return code

    def _report_lost(self, rank: int) -> None:
        events.emit(self.output.errors, "lost", rank=self.comm.rank, lost=rank)

    def _open_folder(self, folder: Path) -> None:
        rank = self.comm.rank
        if rank == 0:
            try:
                folder.mkdir(parents=True, exist_ok=bool(self.launch.resume) or awaits_start(folder))
            except FileExistsError:
                raise UserError(f"--output: {folder} exists on {socket.gethostname()}; give another folder") from None
            whole = json.dumps(self.config.model_dump(exclude={"slurm"}), indent=1)
            (folder / "config.json").write_text(whole + "\n", encoding="utf-8")
            events.emit(self.output.errors, "folder", rank=0, path=str(folder.absolute()))
        self.folder = folder
        self.comm.barrier()
        self.output.capture(folder / "logs" / f"rank-{rank}.log", show=rank in self.launch.tee)
        print(
            f"rank {rank} of {self.comm.size} on {socket.gethostname()}, {torch.get_num_threads()} threads",
            flush=True,
        )

    def _sinks(self) -> list[Sink]:
        if self.comm.rank != 0:
            return []
        folder = Path(self.launch.output)
        stream = os.fdopen(os.dup(self.output.terminal), "w", encoding="utf-8")
        return [
            jsonl.create(folder),
            tensorboard.create(folder),
            terminal.create(stream, self.launch.columns),
        ]

    def _close_folder(self, trainer: Trainer, ended: str) -> None:
        """summary.json before the sinks show it: who sees the table finds the file."""
        if self.comm.rank == 0:
            folder = Path(self.launch.output)
            summary = self._summary(trainer, ended)
            (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
            for sink in trainer.sinks:
                sink.close({**summary, "folder": str(folder)})
        if not self.lost:
            self.comm.barrier()

    def _summary(self, trainer: Trainer, ended: str) -> dict[str, Any]:
        return {
            "world_size": self.comm.size,
            "engine": self.launch.engine,
            "strategy": self.config.sync.strategy,
            **trainer.strategy.summary(),
            "ended": ended,
            "steps": trainer.progress.step,
            "epochs": trainer.epochs,
            "samples_per_second": trainer.samples_per_second,
            "steps_per_second": trainer.steps_per_second,
            "eval": trainer.metrics,
            "bytes_sent": trainer.bytes_sent,
            "bytes_of_ranks": trainer.bytes_of_ranks,
            "seconds": trainer.clock.seconds,
        }


def build(config: Config, comm: Communicator) -> Parts:
    """Data, model, loss and optimizer of one rank; UserError names the rank and the host where input is to blame."""
    try:
        device = _device(config.train.device, comm)
        precision = Precision(config.train.precision, device)
        data = plugins.create("hvd_train.data", config.data.name, **config.data.options)
        if not len(data.train):
            raise UserError("data: the training set is empty")
        torch.manual_seed(config.seed)
        model = plugins.create("hvd_train.models", config.model.name, data.spec, **config.model.options)
        model.to(device, precision.dtype)
        # Made once more by the strategy, of the parameters it likes; here only to refuse before anything is written.
        builder(config.optimizer, config.train.precision)([p for p in model.parameters() if p.requires_grad])
        return Parts(data, model, loss.build(config.train, data, device), precision, device)
    except UserError as error:
        raise UserError(
            f"{error} (rank {comm.rank} on {socket.gethostname()})" if comm.size > 1 else str(error)
        ) from error


def assemble(
    config: Config,
    comm: Communicator,
    parts: Parts,
    sinks: list[Sink],
    checkpoints: Path | None,
    stop: StopRequest,
) -> Trainer:
    """The trainer of one rank; from here on generators differ between ranks, so that their noise does.

    Those of ranks that share layers stay in step: what they all compute has to drop out alike.
    """
    parts_of_model = layout(comm.size, config.parallel.pipeline, config.parallel.tensor)
    mesh = Mesh(comm, parts_of_model) if parts_of_model.split else None
    fusion = config.sync.fusion_mb
    context = Context(
        mesh.copies if mesh else comm,
        _compressor(config),
        None if fusion == "auto" else int(fusion * 2**20),
        config.seed,
        split=mesh is not None,
    )
    strategy = plugins.create("hvd_train.sync", config.sync.strategy, context, **config.sync.options)
    partitioner = plugins.create("hvd_train.partition", config.data.partition.name, **config.data.partition.options)
    sampler = Sampler(
        parts.data.train.labels,
        partitioner,
        strategy.share,
        strategy.world,
        config.data.batch_size,
        config.train.accumulate,
        config.seed,
    )
    sampler.check(comm)
    if strategy.promises_privacy and not partitioner.keeps:
        raise UserError(
            f"data.partition: '{config.data.partition.name}' deals samples to other clients in every epoch, so that sync.noise "
            "would protect nobody; take contiguous, round_robin, dirichlet or by_label"
        )
    whole = WholeModel(parts.model, parts.loss, parts.data, parts.precision, Clock())
    execution: Execution = divide(whole, mesh, config) if mesh else whole
    optimizer = strategy.optimizer(execution.model, builder(config.optimizer, config.train.precision))
    torch.manual_seed(config.seed * 65537 + comm.rank // config.parallel.tensor + 1)
    return Trainer(
        config=config,
        comm=comm if mesh else strategy.world,
        data=parts.data,
        execution=execution,
        optimizer=execution.joined(optimizer),
        sampler=sampler,
        strategy=strategy,
        precision=parts.precision,
        sinks=sinks,
        checkpoints=checkpoints,
        stop=stop,
        observed=mesh is not None or strategy.world.size == comm.size or comm.rank == 0,
    )


def _compressor(config: Config) -> Any:
    section = config.sync.compression
    return plugins.create("hvd_train.compress", section.name, **section.options)


def _device(wanted: str, comm: Communicator) -> torch.device:
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            "train.device: 'cuda' is not available to this torch; expected a CUDA build and a GPU, or 'cpu'"
        )
    count = torch.cuda.device_count()
    if comm.local_size > count:
        raise UserError(
            f"train.device: {comm.local_size} ranks on a host with {count} GPU(s); start fewer, or set train.device=cpu"
        )
    torch.cuda.set_device(comm.local_rank)
    return torch.device("cuda", comm.local_rank)

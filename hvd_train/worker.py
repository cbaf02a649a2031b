"""The one place that wires a rank together: configuration, engine, data, model, strategy, trainer."""

from __future__ import annotations

import os
import signal
import socket
import threading
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train import (
    batch_norm,
    checkpoint,
    events,
    failures,
    loss,
    model_state,
    plugins,
    preprocessing,
    script,
    strict_json,
)
from hvd_train.alike import alike
from hvd_train.clock import Clock
from hvd_train.comm._agree import first_problem, together
from hvd_train.comm._checked import checked
from hvd_train.comm._emulated import emulated
from hvd_train.comm.base import Communicator, broadcast_json
from hvd_train.config import Config, EmulationSection, Launch, parse_document
from hvd_train.data.base import Dataset
from hvd_train.errors import ExitCode, Stopped, UserError
from hvd_train.execution import Execution, WholeModel
from hvd_train.generators import seed_generators
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
from hvd_train.submitted import awaits_start, is_empty
from hvd_train.sync.base import Context
from hvd_train.trainer import Trainer

PATIENCE = 6.0
"""Seconds that a rank which cannot start waits for the others to hear of it."""


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
        events.emit(self.output.errors, "started", rank=self.comm.rank, stop=int(signal.SIGUSR1))
        try:
            self._check_world()
            if self.launch.emulate:
                self._emulate(self.launch.emulate)
            if self.launch.check_collectives:
                self.comm = checked(self.comm)
            code = self._run()
        except Exception as error:
            failures.report(error, self.comm.rank, self.output.errors, self.folder)
            if not hasattr(error, "exit_code"):
                traceback.print_exc()  # for the log
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
        """Prepare and train, or refuse on all ranks."""
        folder = Path(self.launch.output)
        trainer = problem = None
        try:
            trainer = self._prepared(folder)
        except UserError as error:
            failures.report(error, self.comm.rank, self.output.errors, None)
            problem = str(error)
        refusal = self._first_problem(problem)
        if trainer is None or refusal:
            return self._refuse(str(refusal))
        return self._train(trainer, folder)

    def _first_problem(self, problem: str | None) -> str | None:
        """Collective. Ranks without a problem may be in some other collective, and never come: then the job ends.

        The command has heard of the problem by then and ends the job sooner; a pasted command line has nobody else.
        """
        patience = threading.Timer(PATIENCE, self.comm.abort, [ExitCode.BAD_INPUT])
        patience.daemon = True
        if problem:
            patience.start()
        try:
            return first_problem(self.comm, problem)
        finally:
            patience.cancel()

    def _prepared(self, folder: Path) -> Trainer:
        parts = together(self.comm, partial(build, self.config, self.comm))
        snapshot = None
        if self.launch.resume:
            self._check_preprocessing(parts.data, Path(self.launch.resume))
            snapshot = checkpoint.load(Path(self.launch.resume), self.comm, self._warn)
        if self.comm.rank == 0:
            for text in parts.data.warnings:
                self._warn(text)
        measured = snapshot.state.get("fusion_bytes") if snapshot else None
        trainer = assemble(
            self.config,
            self.comm,
            parts,
            self._sinks(),
            folder / "checkpoints",
            self.stop,
            fusion_bytes=measured,
            source=Path(self.launch.resume) if self.launch.resume else None,
        )
        if snapshot is not None:
            trainer.restore(snapshot, self._warn)
        return trainer

    def _refuse(self, problem: str) -> int:
        if self.comm.rank == 0:
            events.emit(self.output.errors, "refused", rank=0, message=problem, exit_code=int(ExitCode.BAD_INPUT))
        return ExitCode.BAD_INPUT

    def _warn(self, text: str) -> None:
        os.write(self.output.errors, f"ddl: warning: {text}\n".encode())

    def _check_preprocessing(self, data: Dataset, source: Path) -> None:
        """UserError on all ranks where inputs are not made as those that the run in `source` was trained on; collective."""
        problem = None
        if self.comm.rank == 0:
            folder = source if not (source / checkpoint.MANIFEST).exists() else source.absolute().parents[1]
            problem = preprocessing.difference(folder, data)
        problem = broadcast_json(self.comm, problem)
        if problem:
            raise UserError(problem)

    def _train(self, trainer: Trainer, folder: Path) -> int:
        trainer.clock = self.clock or trainer.clock
        self._open_folder(folder, trainer.data)
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

    def _open_folder(self, folder: Path, data: Dataset) -> None:
        rank = self.comm.rank
        if rank == 0:
            try:
                folder.mkdir(
                    parents=True, exist_ok=bool(self.launch.resume) or awaits_start(folder) or is_empty(folder)
                )
            except FileExistsError:
                raise UserError(f"--output: {folder} exists on {socket.gethostname()}; give another folder") from None
            whole = strict_json.dumps(self.config.model_dump(exclude={"slurm"}), indent=1)
            (folder / "config.json").write_text(whole + "\n", encoding="utf-8")
            preprocessing.save(folder, data)
            events.emit(self.output.errors, "folder", rank=0, path=str(folder.absolute()))
        self.folder = folder
        self.comm.barrier()
        tee = self.launch.tee
        self.output.capture(folder / "logs" / f"rank-{rank}.log", rank, show=rank in tee, tag=len(tee) > 1)
        print(
            f"rank {rank} of {self.comm.size} on {socket.gethostname()}, {torch.get_num_threads()} threads",
            flush=True,
        )

    def _sinks(self) -> list[Sink]:
        if self.comm.rank != 0:
            return []
        folder = Path(self.launch.output)
        stream = self.output.stream()
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
            (folder / "summary.json").write_text(strict_json.dumps(summary, indent=1) + "\n", encoding="utf-8")
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
    """Build data, model and loss of one rank; UserError for bad input. Uses no collective."""
    device = _device(config.train.device, comm)
    precision = Precision(config.train.precision, device)
    seed_generators(config.seed)
    data = plugins.create("hvd_train.data", config.data.name, **config.data.options)
    if not len(data.train):
        raise UserError("data: the training set is empty")
    sample, _ = data.train.batch(torch.tensor([0]))
    _check_inputs(config, data, sample)
    seed_generators(config.seed)
    model = plugins.create("hvd_train.models", config.model.name, data.spec, **config.model.options)
    model_state.materialise(model, sample)
    model_state.check(model)
    if comm.size > 1:
        model_state.check_alone(model)
    model_state.convert_(model, device, precision.dtype)
    _check_gradients(config, model)
    # Built once to reject bad options before the run folder exists. The strategy builds the optimizer that trains.
    builder(config.optimizer, config.train.precision)([p for p in model.parameters() if p.requires_grad])
    return Parts(data, model, loss.build(config.train, data, device), precision, device)


def _check_batches(parts: Parts, sampler: Sampler) -> None:
    if not batch_norm.leaves_one(*sampler.first):
        return
    sample, _ = parts.data.train.batch(torch.tensor([0]))
    with parts.precision.forward():
        batch_norm.check(parts.model, parts.precision.inputs(sample), *sampler.first)


def _check_gradients(config: Config, model: nn.Module) -> None:
    """Raise UserError for gradients that loss scaling or clipping cannot take."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    name = next((name for name, p in trained.items() if p.is_complex()), None)
    if name and config.train.precision == "fp16":
        raise UserError(
            f"train.precision: '{name}' is complex, and torch cannot scale losses for complex gradients; use bf16 or fp32"
        )
    name = next((name for name, p in trained.items() if p in model_state.sparse_weights(model)), None)
    if name and config.train.clip_norm is not None:
        raise UserError(
            f"train.clip_norm: the gradients of '{name}' are sparse, which torch cannot clip; leave clip_norm out, or set "
            "sparse=False in nn.Embedding"
        )


def _check_inputs(config: Config, data: Dataset, x: Tensor) -> None:
    """UserError for integers where the model is one of ours that takes numbers: an own model may embed them."""
    if config.model.name != "target" and data.spec.task != "language" and not x.is_floating_point():
        raise UserError(
            f"data: inputs are of type {x.dtype}, and the model '{config.model.name}' takes floating point numbers; "
            "convert them where the samples are made, as by x.float() / 255"
        )


def assemble(
    config: Config,
    comm: Communicator,
    parts: Parts,
    sinks: list[Sink],
    checkpoints: Path | None,
    stop: StopRequest,
    fusion_bytes: int | None = None,
    source: Path | None = None,
) -> Trainer:
    """Put the trainer of one rank together; collective. UserError where ranks have different data or models.

    From here on generators differ between ranks, so that their noise does. Those of ranks that share layers stay in step:
    what they all compute has to drop out alike. `fusion_bytes` is what an earlier start of this run measured, for
    `fusion_mb: auto`, and `source` the run folder or checkpoint that the run goes on from.
    """
    alike(comm, parts.data, parts.model, parts.device)
    parts_of_model = layout(comm.size, config.parallel.pipeline, config.parallel.tensor)
    mesh = Mesh(comm, parts_of_model) if parts_of_model.split else None
    fusion = config.sync.fusion_mb
    context = Context(
        mesh.copies if mesh else comm,
        _compressor(config),
        fusion_bytes if fusion == "auto" else int(fusion * 2**20),
        config.seed,
        split=mesh is not None,
        folder=checkpoints.parent if checkpoints else None,
        source=source,
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
    together(comm, partial(_check_batches, parts, sampler))
    if strategy.promises_privacy and not partitioner.keeps:
        raise UserError(
            f"data.partition: '{config.data.partition.name}' deals samples to other clients in every epoch, so that sync.noise "
            "would protect nobody; take contiguous, round_robin, dirichlet or by_label"
        )
    if strategy.promises_privacy and config.train.class_weights == "balanced":
        raise UserError(
            "train.class_weights: 'balanced' counts the labels of all clients, which sync.noise does not cover; "
            "give the weights as a list that does not depend on their data, or leave it out"
        )
    whole = WholeModel(parts.model, parts.loss, parts.data, parts.precision, Clock())
    execution: Execution = divide(whole, mesh, config) if mesh else whole
    optimizer = strategy.optimizer(execution.model, builder(config.optimizer, config.train.precision))
    seed_generators(config.seed * 65537 + comm.rank // config.parallel.tensor + 1)
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

"""Runs one rank of a job, from its document to its exit code."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hvd_train.comm.agree import first_problem, together
from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import broadcast_json
from hvd_train.comm.wrappers.checked import checked
from hvd_train.comm.wrappers.emulated import emulated
from hvd_train.compute.activity import Activity
from hvd_train.compute.clock import Clock
from hvd_train.compute.straggler import SlowClock
from hvd_train.config import plugins
from hvd_train.config.launch import RESULT, Launch, parse_document
from hvd_train.config.schema import Config
from hvd_train.data import preprocessing
from hvd_train.data.base import Dataset
from hvd_train.errors import Diverged, ExitCode, Stopped, UserError
from hvd_train.rank import events, failures
from hvd_train.rank.assemble import Surroundings, assemble
from hvd_train.rank.build import build
from hvd_train.rank.node import on_node
from hvd_train.rank.process import Process
from hvd_train.rank.run_folder import RunFolder
from hvd_train.rank.signals import StopRequest
from hvd_train.rank.task import Task, TaskContext
from hvd_train.state.checkpoint_folder import MANIFEST, run_of
from hvd_train.text import strict_json
from hvd_train.training import checkpoint
from hvd_train.training.loop import Trainer

REFUSAL_TIMEOUT = 6.0
"""Seconds after which a rank with bad input aborts the job if other ranks do not answer."""


@dataclass(frozen=True)
class Ended:
    """How a run ended on this rank: its exit code, the reason of a code that is not OK, and the lost ranks."""

    code: int
    reason: str = ""
    lost: Sequence[int] = ()


Work = Callable[[], Ended]


def run_document(text: str) -> int:
    """Run one rank of the job that `text` (see `config.to_document`) describes.

    Return its exit code.
    """
    process = Process()
    try:
        config, launch = parse_document(text)
        engine = plugins.create("hvd_train.comm.engines", launch.engine)
    except Exception as error:
        failures.report(error, -1, process.output.errors, None)
        return failures.exit_code(error)
    process.begin(engine.rank)
    run = RankRun(config, launch, engine, process, process.stop, is_last=True)
    try:
        ended = run.train()
    except Exception as error:
        process.fail(error, engine, run.written)
    process.end(ended.code)
    if ended.lost:
        os._exit(ended.code)  # an engine's own end waits for all ranks, dead ones too
    run.comm.close()
    return ended.code


class RankRun:
    """One run on a rank whose `engine` has started.

    `stop` asks this rank to stop. The process ends with a run that `is_last`, so the command is told of
    bad input at once.
    """

    def __init__(
        self,
        config: Config,
        launch: Launch,
        engine: Communicator,
        process: Process,
        stop: StopRequest,
        *,
        is_last: bool,
    ) -> None:
        self._config, self._launch, self._process, self._stop, self._is_last = config, launch, process, stop, is_last
        self._engine = self.comm = engine
        self._rank, self._output = engine.rank, process.output
        self._folder = RunFolder(config, launch, engine, process.output, stop.set)
        self._trainer: Trainer | None = None

    @property
    def written(self) -> Path | None:
        """The run folder once it exists."""
        return self._folder.path if self._folder.is_open else None

    @property
    def in_step(self) -> bool:
        """True if the run trains, and all ranks take their steps together."""
        return self._trainer is not None and self._trainer.group.in_step

    def train(self) -> Ended:
        """Train, or do the task, and return how the run ended.

        Bad input on one rank is refused on all ranks. Raise all other errors, of which other ranks
        may not know.
        """
        check_world(self._engine, self._launch.world_size)
        self.comm, clock = _wrapped(self._engine, self._launch, self._process.activity)
        prepare = self._task if self._launch.task else self._training
        return self._work_or_refuse(partial(prepare, self.comm, clock))

    def abandon(self, error: Diverged) -> Ended:
        """Release what the run holds after `train` has raised `error` on all ranks, `in_step`; collective."""
        assert self._trainer is not None, "only a run that trains diverges"
        failures.save(error, self._rank, self._folder.path)
        self._trainer.abandon()
        return Ended(ExitCode.DIVERGED, str(error))

    def _work_or_refuse(self, prepare: Callable[[], Work]) -> Ended:
        work = problem = None
        try:
            work = prepare()
        except UserError as error:
            problem = error
            if self._is_last:
                failures.report(error, self._rank, self._output.errors, None)
        refusal = first_in_time(self.comm, problem, REFUSAL_TIMEOUT, self._give_up)
        if work is None or refusal:
            self._refuse(str(refusal))
            return Ended(ExitCode.BAD_INPUT, str(refusal))
        return work()

    def _give_up(self, problem: Exception) -> None:
        if self._is_last:  # the problem has been reported
            self._engine.abort(ExitCode.BAD_INPUT)
        else:
            self._process.fail(problem, self._engine)

    def _training(self, comm: Communicator, clock: Clock) -> Work:
        return partial(self._train, self._prepare(comm, clock))

    def _task(self, comm: Communicator, clock: Clock) -> Work:
        """Do the task, and return what writes its result."""
        launch, folder = self._launch, Path(self._launch.output)
        assert launch.task is not None
        task: Task = launch.task.create()
        source = Path(launch.resume or "")
        result = task.run(TaskContext(self._config, comm, source, folder, self._output, launch.columns))
        return partial(self._write, folder / RESULT, result)

    def _write(self, file: Path, result: dict[str, Any]) -> Ended:
        if self._rank == 0:
            file.write_text(strict_json.dumps_exact(result), encoding="utf-8")
        return Ended(ExitCode.OK)

    def _prepare(self, comm: Communicator, clock: Clock) -> Trainer:
        """Build and wire the trainer, and restore the checkpoint that the run resumes from."""
        built = on_node(comm, partial(build, self._config, comm))
        source = Path(self._launch.resume) if self._launch.resume else None
        if source is not None:
            _check_preprocessing(comm, built.data, source)
        snapshot = checkpoint.load(source, comm, self._output.warn) if source is not None else None
        if self._rank == 0:
            for text in (*built.data.warnings, *built.precision.warnings):
                self._output.warn(text)
        around = Surroundings(
            clock,
            together(comm, self._folder.sinks),
            self._folder.checkpoints,
            source,
            snapshot.state.get("fusion_bytes") if snapshot else None,
            self._stop.is_set,
            self._report_lost,
        )
        trainer = assemble(self._config, comm, built, around)
        if snapshot is not None:
            trainer.restore(snapshot, self._output.warn)
        return trainer

    def _train(self, trainer: Trainer) -> Ended:
        self._trainer = trainer
        self._folder.open(trainer.data)
        try:
            ended, code, reason = trainer.run(), int(ExitCode.OK), ""
        except Stopped as stopped:
            ended, code, reason = str(stopped), int(stopped.exit_code), str(stopped)
        lost = trainer.strategy.members.lost
        self._folder.close(trainer, ended, lost)
        return Ended(code, reason, lost)

    def _refuse(self, problem: str) -> None:
        if self._is_last and self._rank == 0:
            code = int(ExitCode.BAD_INPUT)
            events.emit(self._output.errors, "refused", rank=0, message=problem, exit_code=code)

    def _report_lost(self, rank: int) -> None:
        events.emit(self._output.errors, "lost", rank=self._rank, lost=rank)


def check_world(comm: Communicator, size: int) -> None:
    """Raise UserError if the launcher has not joined `size` ranks."""
    if comm.size != size:
        raise UserError(
            f"this rank sees a world of {comm.size}, not of {size}: launcher and MPI library "
            "do not know each other (an mpirun of another MPI, or srun with the wrong --mpi)"
        )


def _wrapped(comm: Communicator, launch: Launch, activity: Activity) -> tuple[Communicator, Clock]:
    """Return communicator and clock, with the emulation and the checks that `launch` asks for."""
    clock = Clock(activity)
    if section := launch.emulate:
        factor = section.factor if comm.rank == section.straggler else 1.0
        comm = slow = emulated(comm, section.latency_ms, section.gbps, factor)
        clock = SlowClock(slow.pace, activity)
    return checked(comm) if launch.check_collectives else comm, clock


def first_in_time(
    comm: Communicator, problem: Exception | None, seconds: float, give_up: Callable[[Exception], object]
) -> str | None:
    """Return the text of the first problem in rank order, None if no rank has one; collective.

    A rank without a problem may wait in another collective and never come here. Then the rank with
    the problem calls `give_up` after `seconds`, which must end the job. The command, where there is
    one, ends the job sooner if it has received the problem as an event.
    """
    timer = threading.Timer(seconds, give_up, [problem])
    timer.daemon = True
    if problem:
        timer.start()
    try:
        return first_problem(comm, str(problem) if problem else None)
    finally:
        timer.cancel()


def _check_preprocessing(comm: Communicator, data: Dataset, source: Path) -> None:
    """Raise UserError on all ranks if inputs are made in another way than in the run `source`.

    The call is collective.
    """
    problem = None
    if comm.rank == 0:
        folder = run_of(source.absolute()) if (source / MANIFEST).exists() else source
        problem = preprocessing.difference(folder, data) if folder is not None else None
    problem = broadcast_json(comm, problem)
    if problem:
        raise UserError(problem)

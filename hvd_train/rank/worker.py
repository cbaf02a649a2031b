"""Runs one rank of a job, from its document to its exit code."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable
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
from hvd_train.errors import ExitCode, Stopped, UserError
from hvd_train.rank import events, failures, script
from hvd_train.rank.assemble import Surroundings, assemble
from hvd_train.rank.build import build
from hvd_train.rank.heartbeat import Heartbeat
from hvd_train.rank.logs import Output
from hvd_train.rank.node import on_node
from hvd_train.rank.run_folder import RunFolder
from hvd_train.rank.signals import StopRequest
from hvd_train.rank.task import Task, TaskContext
from hvd_train.state.checkpoint_folder import MANIFEST, run_of
from hvd_train.text import strict_json
from hvd_train.training import checkpoint
from hvd_train.training.loop import Trainer

Work = Callable[[], tuple[int, list[int]]]
"""Returns the exit code and the lost ranks."""
REFUSAL_TIMEOUT = 6.0
"""Seconds after which a rank with bad input aborts the job if other ranks do not answer."""


def run_document(text: str) -> int:
    """Run one rank of the job that `text` (see `config.to_document`) describes.

    Return its exit code.
    """
    output = Output()
    stop = StopRequest()
    stop.listen()
    activity = Activity(script.rank())
    heartbeat = Heartbeat(output.errors, activity)
    try:
        config, launch = parse_document(text)
        comm = plugins.create("hvd_train.comm.engines", launch.engine)
    except Exception as error:
        failures.report(error, -1, output.errors, None)
        return failures.exit_code(error)
    activity.rank = comm.rank
    events.emit(output.errors, "started", rank=comm.rank, stop=int(signal.SIGUSR1))
    return _Rank(config, launch, comm, output, stop, heartbeat, activity).run()


class _Rank:
    """One rank whose engine has started."""

    def __init__(
        self,
        config: Config,
        launch: Launch,
        engine: Communicator,
        output: Output,
        stop: StopRequest,
        heartbeat: Heartbeat,
        activity: Activity,
    ) -> None:
        self._config, self._launch, self._engine, self._output = config, launch, engine, output
        self._stop, self._heartbeat, self._activity = stop, heartbeat, activity
        self._rank, self._folder = engine.rank, RunFolder(config, launch, engine, output, stop.set)

    def run(self) -> int:
        """Train and return the exit code; a rank that fails aborts the job."""
        try:
            _check_world(self._engine, self._launch)
            comm, clock = _wrapped(self._engine, self._launch, self._activity)
            work = self._task if self._launch.task else self._training
            code, lost = self._work_or_refuse(comm, partial(work, comm, clock))
        except Exception as error:
            folder = self._folder.path if self._folder.is_open else None
            failures.report(error, self._rank, self._output.errors, folder)
            if not hasattr(error, "exit_code"):
                traceback.print_exc()  # for the log
            self._output.release()
            self._engine.abort(failures.exit_code(error))
            raise
        self._heartbeat.stop()
        events.emit(self._output.errors, "done", rank=self._rank, exit_code=int(code))
        self._output.release()
        if lost:
            os._exit(code)  # an engine's own end waits for all ranks, dead ones too
        comm.close()
        return code

    def _work_or_refuse(self, comm: Communicator, prepare: Callable[[], Work]) -> tuple[int, list[int]]:
        """Return the exit code and the lost ranks.

        Bad input on one rank is refused on all ranks.
        """
        work = problem = None
        try:
            work = prepare()
        except UserError as error:
            failures.report(error, self._rank, self._output.errors, None)
            problem = str(error)
        refusal = _first_problem(comm, problem)
        if work is None or refusal:
            self._refuse(str(refusal))
            return ExitCode.BAD_INPUT, []
        return work()

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

    def _write(self, file: Path, result: dict[str, Any]) -> tuple[int, list[int]]:
        if self._rank == 0:
            file.write_text(strict_json.dumps_exact(result), encoding="utf-8")
        return ExitCode.OK, []

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

    def _train(self, trainer: Trainer) -> tuple[int, list[int]]:
        self._folder.open(trainer.data)
        try:
            ended, code = trainer.run(), int(ExitCode.OK)
        except Stopped as stopped:
            ended, code = str(stopped), int(stopped.exit_code)
        lost = trainer.strategy.members.lost
        self._folder.close(trainer, ended, lost)
        return code, lost

    def _refuse(self, problem: str) -> None:
        if self._rank == 0:
            code = int(ExitCode.BAD_INPUT)
            events.emit(self._output.errors, "refused", rank=0, message=problem, exit_code=code)

    def _report_lost(self, rank: int) -> None:
        events.emit(self._output.errors, "lost", rank=self._rank, lost=rank)


def _check_world(comm: Communicator, launch: Launch) -> None:
    if comm.size != launch.world_size:
        raise UserError(
            f"this rank sees a world of {comm.size}, not of {launch.world_size}: launcher and MPI library "
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


def _first_problem(comm: Communicator, problem: str | None) -> str | None:
    """Return the first problem in rank order, None if no rank has one; collective.

    A rank without a problem may wait in another collective and never come here. Then the rank with
    the problem aborts the job after REFUSAL_TIMEOUT. The command, where there is one, ends the job
    sooner: it has received the problem as an event.
    """
    timer = threading.Timer(REFUSAL_TIMEOUT, comm.abort, [ExitCode.BAD_INPUT])
    timer.daemon = True
    if problem:
        timer.start()
    try:
        return first_problem(comm, problem)
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

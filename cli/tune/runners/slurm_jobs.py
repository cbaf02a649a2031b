"""Each run is a job of SLURM.

One thread looks at all jobs: twice a second at the files that the jobs write to their run folders,
and every few seconds at the queue, with one query for all jobs.
"""

from __future__ import annotations

import contextlib
import math
import re
import secrets
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from cli.arguments.submission import yaml_work
from cli.launch.entrypoint import YamlFile
from cli.runs import records
from cli.runs.records import Submitted
from cli.slurm import control, jobs, reasons, submit
from cli.slurm.batch import SCRIPT, Batch
from cli.slurm.control import JobStatus, SlurmTimeout
from cli.slurm.end import STOPPED
from cli.slurm.schema import SlurmProfile
from cli.slurm.submit import Submission
from cli.tune import gate
from cli.tune.cause import cause
from cli.tune.linking import linked
from cli.tune.runner import Run
from hvd_train.config.launch import GATE
from hvd_train.errors import ExitCode, UserError
from hvd_train.rank.submitted import has_checkpoint
from hvd_train.state import checkpoint_folder

FILES, QUEUE, RETRY = 0.5, 5.0, 30.0
"""Seconds between two looks at the run folders, two at the queue, and two tries of a job that a limit kept out."""

_SETTLED = {"finished", "preparation", "cancelled", "stopped"}
"""Causes of an end that the state of the job in SLURM cannot change. Such a job has not been queued again."""
_OWN_CODES = {ExitCode.BAD_INPUT, ExitCode.DIVERGED}
"""Exit codes by which the run itself says why it failed."""
_LIMIT = re.compile(r"MaxSubmit|[Tt]emporarily un")
_NO_ANSWER = re.compile(r"Unable to contact|timed out")
_NAME = re.compile(r"^#SBATCH --job-name=(\S+)$", re.MULTILINE)


class SlurmJobs:
    """Submits runs. `flags` are fields of `slurm:` from the command line, `options` words for `ddl run`."""

    outlives = True

    def __init__(self, flags: Mapping[str, Any], options: Sequence[str] = ()) -> None:
        self._flags, self._options = flags, tuple(options)
        self._works: dict[tuple[Path, tuple[str, ...]], Submission] = {}
        self._jobs: list[SlurmJob] = []
        self._accepted = False
        """True once SLURM has accepted a job of the search."""
        self._thread = ThreadPoolExecutor(1, "slurm")
        self._look: Future[None] | None = None
        self._next_look = self._next_queue = self._next_try = 0.0

    def start(self, run: Run) -> SlurmJob:
        """Submit a job for `run`. If a limit on jobs keeps it out, it is submitted later.

        UserError if SLURM refuses the first job of the search. A later one that it refuses has
        failed.
        """
        job = SlurmJob(Submitted(run.folder, None, None, run.overrides), self)
        try:
            job.batch = self._batch(run)
            job.script = submit.script(job.batch)
            records.forget(run.folder)
            if run.resume is not None and run.resume != run.folder:
                adopt(run.resume, run.folder)
            self._submit(job)
        except UserError as error:
            if not self._accepted:
                raise
            job.settle(ExitCode.BAD_INPUT, str(error))
        self._jobs.append(job)
        return job

    def attach(self, folder: Path) -> SlurmJob | None:
        """Return the job that an earlier process submitted for the run in `folder`; None if its run has to start.

        The job waits, runs or has ended since. A run that a search stopped has to start again.
        """
        run = records.recorded(folder)
        if run is None:
            return None
        number = run.job or records.job_that_began(folder) or _find(folder / SCRIPT)
        if number is None:
            return None
        job = SlurmJob(replace(run, job=number), self)
        records.record([job.run])
        job.look()
        if job.code is None and job.is_asked:
            self._ask([job])
        if job.code is not None and job.is_stopped:
            return None
        self._accepted = True
        self._jobs.append(job)
        return job

    def watch(self) -> None:
        """Begin the next look at all jobs if it is due."""
        now = time.monotonic()
        if now < self._next_look or (self._look is not None and not self._look.done()):
            return
        if self._look is not None:
            self._look.result()
        self._jobs = [job for job in self._jobs if job.code is None]
        asks = now >= self._next_queue
        self._next_look = now + FILES
        self._next_queue = now + QUEUE if asks else self._next_queue
        self._look = self._thread.submit(self._look_at, tuple(self._jobs), asks)

    def hurry(self) -> None:
        """Look at the queue at the next chance."""
        self._next_look = self._next_queue = 0.0

    def close(self) -> None:
        """Deliver the last requests to jobs. The jobs go on."""
        if any(job.is_asked and job.code is None for job in self._jobs):
            self._thread.submit(self._look_at, tuple(self._jobs), True)
        self._thread.shutdown()

    def _batch(self, run: Run) -> Batch:
        work = self._work(run)
        name = re.sub(r"[^\w.-]", "-", f"{work.name}-{run.folder.name}-{secrets.token_hex(4)}")
        flags = dict(self._flags)
        if run.gated:
            flags["environment"] = {**flags.get("environment", {}), GATE: str(run.folder / gate.FILE)}
        batch = submit.batch(work, flags, folder=run.folder, np=run.np)
        return replace(batch, name=name, settings=fitted(batch.settings, run.np))

    def _work(self, run: Run) -> Submission:
        """Return the work of `run`. The file is read once for all runs with the same request to SLURM."""
        key = (run.file, tuple(text for text in run.overrides if text.startswith("slurm.")))
        if key not in self._works:
            self._works[key] = yaml_work(YamlFile(*key), self._options)
        others = (text for text in run.overrides if text not in key[1])
        return replace(self._works[key], run=(*self._works[key].run, *others))

    def _submit(self, job: SlurmJob) -> None:
        """Submit `job`, or leave it for later; UserError if SLURM refuses it."""
        assert job.batch is not None
        try:
            job.number = submit.enqueue(job.batch.script, job.script, [job.run])
            self._accepted = True
        except UserError as error:
            silent = isinstance(error, SlurmTimeout) or _NO_ANSWER.search(str(error))
            if not (_LIMIT.search(str(error)) or (silent and self._accepted)):
                raise
            self._next_try = time.monotonic() + RETRY

    def _look_at(self, watched: Sequence[SlurmJob], asks: bool) -> None:
        for job in watched:
            job.look()
        if asks:
            with contextlib.suppress(UserError):  # the controller is busy or restarts
                self._ask([job for job in watched if job.code is None])

    def _ask(self, watched: Sequence[SlurmJob]) -> None:
        """Ask SLURM for the states of `watched`, deliver requests to end, and submit those that wait for it."""
        submitted = {job.number: job for job in watched if job.number is not None}
        queue = control.queue() if submitted else {}
        active = {number: queue[number] for number in submitted if number in queue and queue[number].active}
        for run, state in jobs.states(job.run for number, job in submitted.items() if number not in active):
            if not state.active and run.job is not None:
                submitted[run.job].settle_as(state)
        never = {n: reason for n, state in active.items() if (reason := _never(state))}
        killed = [n for n, state in active.items() if submitted[n].killed or (submitted[n].is_asked and state.waiting)]
        _tell(control.cancel, [*never, *killed])
        _tell(control.notify, [n for n in active if submitted[n].is_asked and n not in killed])
        for number, reason in never.items():
            submitted[number].settle(ExitCode.BAD_INPUT, reason)
        self._try_again(job for job in watched if job.number is None)

    def _try_again(self, waiting: Iterable[SlurmJob]) -> None:
        """Submit jobs that wait for it, until SLURM accepts no more."""
        for job in waiting:
            if job.is_asked:
                job.settle(128 + signal.SIGTERM, "cancelled")
            elif time.monotonic() >= self._next_try:
                self._submit_again(job)

    def _submit_again(self, job: SlurmJob) -> None:
        """Submit `job` unless an earlier try, to which SLURM did not answer, has succeeded."""
        number = _find(job.folder / SCRIPT)
        if number is not None:
            job.number = number
            records.record([job.run])
            return
        try:
            self._submit(job)
        except UserError as error:
            job.settle(ExitCode.BAD_INPUT, str(error))


class SlurmJob:
    """A `run` that has a job, or waits for one."""

    def __init__(self, run: Submitted, runner: SlurmJobs) -> None:
        self.run, self.folder, self._runner = run, run.folder, runner
        self.batch: Batch | None = None
        self.script = ""
        self.code: int | None = None
        self.killed = False
        self._why = ""
        self._size = 0

    @property
    def number(self) -> str | None:
        """The number of the job; None before SLURM has accepted it."""
        return self.run.job

    @number.setter
    def number(self, number: str) -> None:
        self.run = replace(self.run, job=number)

    @property
    def is_asked(self) -> bool:
        """True if the run was asked to end for good."""
        return (self.folder / records.FOR_GOOD).exists()

    @property
    def is_stopped(self) -> bool:
        """True if the run ended because it was asked to."""
        return self.code in STOPPED and self.is_asked

    def poll(self) -> int | None:
        if self.code is None:
            self._runner.watch()
        return self.code

    def message(self) -> str:
        return self._why

    def stop(self) -> None:
        if self.code is None and not self.is_asked:
            (self.folder / records.FOR_GOOD).touch()
            self._runner.hurry()

    def kill(self) -> None:
        if self.code is None and not self.killed:
            self.killed = True
            (self.folder / records.FOR_GOOD).touch()
            self._runner.hurry()

    def look(self) -> None:
        """Read whether the job has written its end to the run folder."""
        try:
            size = (self.folder / records.ATTEMPTS).stat().st_size
        except FileNotFoundError:
            return
        if size == self._size:
            return
        self._size = size
        end = records.newest_end(self.folder)
        if end is None or end["job"] != self.number:
            return
        if end["cause"] in _SETTLED or end["exit_code"] in _OWN_CODES:
            self.settle(end["exit_code"], self._explained(end["cause"]))

    def settle_as(self, state: JobStatus) -> None:
        """Record that the job has ended in `state`."""
        why, code = jobs.outcome(self.run, state)
        if code is None:
            self.settle(ExitCode.FAILURE, f"SLURM has forgotten the job{f' ({why})' if why else ''}")
        else:
            self.settle(code, self._explained(why or state.state))

    def settle(self, code: int, why: str) -> None:
        """Record the end. A run that had saved before it was stopped in the queue has the code STOPPED."""
        was_stopped = code in STOPPED and self.is_asked
        self._why = "" if code == ExitCode.OK else why
        self.code = ExitCode.STOPPED if was_stopped and has_checkpoint(self.folder) else code

    def _explained(self, why: str) -> str:
        """Return what ddl said about a failure of the run, and `why` for other ends."""
        return cause(records.log_tail(self.folder)) or why if why in ("failure", "preparation") else why


def ranks_of_job(file: Path, overrides: Sequence[str]) -> int:
    """Return the number of ranks of a job that `ddl submit` would submit for `file`."""
    return submit.batch(yaml_work(YamlFile(file, tuple(overrides)), ()), {}, folder=Path.cwd()).world_size


def fitted(settings: SlurmProfile, np: int) -> SlurmProfile:
    """Return `settings` with as many nodes as `np` ranks need, at most `ntasks_per_node` on each."""
    nodes, each = settings.nodes, settings.ntasks_per_node
    if each is None:
        return settings.model_copy(update={"nodes": nodes and min(nodes, np)})
    return settings.model_copy(update={"nodes": math.ceil(np / each), "ntasks_per_node": None if np % each else each})


def adopt(source: Path, folder: Path) -> None:
    """Link the checkpoint `source`, or the newest one of the run `source`, into the run folder `folder`.

    A job that is requeued then goes on from its own newest checkpoint.
    """
    own = folder / checkpoint_folder.CHECKPOINTS
    saved = checkpoint_folder.folders(source / checkpoint_folder.CHECKPOINTS)
    chosen = source if (source / checkpoint_folder.MANIFEST).is_file() else next(iter(saved), None)
    if chosen is None:
        raise UserError(f"{source}: no checkpoint to go on from; expected a run folder or a checkpoint in one")
    linked(chosen, own / chosen.name)


def _find(script: Path) -> str | None:
    """Return the job that was submitted with `script`, by its name, which no other job has."""
    name = _NAME.search(script.read_text(encoding="utf-8")) if script.is_file() else None
    return name and control.named(name[1])


def _never(state: JobStatus) -> str | None:
    """Return why a waiting job can never start; None if it may."""
    reason = reasons.meaning(state.reason) if state.waiting else None
    return None if reason is None or reason.exit_code is None else f"{state.reason}: {reason.text}"


def _tell(send: Callable[[Iterable[str]], None], numbers: Sequence[str]) -> None:
    """Send a request to jobs. Some may have ended since, which SLURM reports as an error."""
    if numbers:
        with contextlib.suppress(UserError):
            send(numbers)

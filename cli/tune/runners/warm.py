"""Runs share jobs whose ranks stay alive, so that a run starts no process and imports nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.arguments.configuration import load
from cli.follow.process import end_with_parent
from cli.launch.engines import choose_engine
from cli.launch.target import of_yaml
from cli.tune import gate, marks
from cli.tune.pool import PoolJob
from cli.tune.runner import Run, Running
from hvd_train.config import words
from hvd_train.config.launch import GATE
from hvd_train.errors import ExitCode, UserError
from hvd_train.rank import internal
from hvd_train.text import strict_json

END_SECONDS = 15.0
"""Seconds that ranks have to save and end when the runner is closed."""
POLL_SECONDS = 0.02


class Warm:
    """Keeps a job for each number of ranks on each slots, and starts another one if all of them run.

    A job whose ranks fail ends, and the next run there starts a new one. `logs` is the folder of
    what jobs print. `engine`, `iface` and `ssh_args` are the options of `ddl run`.
    """

    outlives = False

    def __init__(self, logs: Path, engine: str = "auto", iface: str | None = None, ssh_args: str | None = None) -> None:
        if engine == "horovod":
            raise UserError("--warm: ranks of Horovod cannot be used again; use --engine mpi, or leave --warm out")
        self._logs, self._engine, self._iface, self._ssh_args = logs, engine, iface, ssh_args
        self._jobs: list[_PoolProcess] = []
        self._started = 0

    def start(self, run: Run) -> Running:
        try:
            pool = self._pool_of(run)
            document = _document(run, pool.engine)
        except UserError as error:
            return _Refused(str(error))
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        marks.await_end(run.folder)
        variables = {GATE: str(run.folder / gate.FILE)} if run.gated else {}
        started = self._job_for(pool).start(run.folder, document, variables)
        marks.write(run.folder, started.job.pid)
        return started

    def attach(self, folder: Path) -> None:
        """Return None: ranks do not outlive their search."""

    def close(self) -> None:
        for job in self._jobs:
            job.end()
        by = time.monotonic() + END_SECONDS
        for job in self._jobs:
            job.await_end(by)
        self._jobs = []

    def _pool_of(self, run: Run) -> PoolJob:
        where, alone = run.placement, not run.placement.hosts
        of_auto = "single" if run.np == 1 and alone else "mpi"
        engine = choose_engine(of_auto if self._engine == "auto" else self._engine, run.np, alone=alone)
        variables = tuple(sorted(where.variables.items()))
        return PoolJob(run.np, engine, where.hosts, variables, self._iface, self._ssh_args)

    def _job_for(self, pool: PoolJob) -> _PoolProcess:
        self._jobs = [job for job in self._jobs if not job.has_ended()]
        idle = next((job for job in self._jobs if job.pool == pool and job.is_idle), None)
        if idle is None:
            self._started += 1
            idle = _PoolProcess(pool, self._logs / f"{self._started}.log")
            self._jobs.append(idle)
        return idle


class _PoolProcess:
    """The process of `pool`, which writes to the file `log`."""

    def __init__(self, pool: PoolJob, log: Path) -> None:
        self.pool, self._log = pool, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as file:
            self._process = subprocess.Popen(
                internal.argv("cli.tune.pool", pool.dump()),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        os.set_blocking(self._answers.fileno(), False)
        self.pid = self._process.pid
        self._part = b""
        self._runs = 0
        self._ends: dict[int | None, tuple[int, str]] = {}
        """Exit code and message of each run that has ended, and of the job under None."""

    @property
    def is_idle(self) -> bool:
        return None not in self._ends and (self._runs in self._ends or not self._runs)

    def start(self, folder: Path, document: str, variables: dict[str, str]) -> _WarmRun:
        """Run `document`, whose run folder is `folder`."""
        self._runs += 1
        self._send({"run": self._runs, "document": document, "variables": variables})
        return _WarmRun(self, self._runs, folder)

    def stop(self, run: int) -> None:
        self._send({"stop": run})

    def end_of(self, run: int) -> tuple[int, str] | None:
        """Return exit code and message of `run`, or those of the job if it ended first; None while it runs."""
        self._read()
        if run in self._ends or None not in self._ends:
            return self._ends.get(run)
        code, message = self._ends[None]
        return code or int(ExitCode.FAILURE), message or "its ranks ended"

    def has_ended(self) -> bool:
        self._read()
        return self._answers.closed

    def end(self) -> None:
        """Ask the ranks to end: a run saves and stops."""
        self._send({"end": True})
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)

    def await_end(self, by: float) -> None:
        """Return when the process has ended; kill it at the time `by`."""
        while not self.has_ended() and time.monotonic() < by:
            time.sleep(POLL_SECONDS)
        if not self.has_ended():
            self.kill()
            os.set_blocking(self._answers.fileno(), True)
            self._read()

    def _send(self, request: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # the job has ended, which its answers tell
            self._requests.write(f"{strict_json.dumps_exact(request)}\n".encode())
            self._requests.flush()

    def _read(self) -> None:
        """Take the answers that have arrived. The pipe is closed when the process ends."""
        while not self._answers.closed:
            try:
                data = os.read(self._answers.fileno(), 65536)
            except BlockingIOError:
                return
            *lines, self._part = (self._part + data).split(b"\n")
            for answer in map(strict_json.loads_exact, lines):
                self._ends[answer.get("run")] = answer["code"], answer["message"]
            if not data:
                self._answers.close()
                code = self._process.wait()
                self._ends.setdefault(None, (code if code > 0 else 128 - code, f"see {self._log}"))


@dataclass(frozen=True)
class _WarmRun:
    """The run `number` of `job`."""

    job: _PoolProcess
    number: int
    folder: Path

    def poll(self) -> int | None:
        end = self.job.end_of(self.number)
        if end is None:
            return None
        marks.remove(self.folder)  # the process lives on
        return end[0]

    def message(self) -> str:
        end = self.job.end_of(self.number)
        assert end is not None, "the run has ended"
        return one_line(end[1]) or f"exit code {end[0]}"

    def stop(self) -> None:
        if self.poll() is None:
            self.job.stop(self.number)

    def kill(self) -> None:
        if self.poll() is None:
            self.job.kill()


@dataclass(frozen=True)
class _Refused:
    """A run that cannot start because of the `problem`."""

    problem: str

    def poll(self) -> int:
        return int(ExitCode.BAD_INPUT)

    def message(self) -> str:
        return one_line(self.problem)

    def stop(self) -> None:
        """Do nothing: the run has ended."""

    kill = stop


def one_line(text: str) -> str:
    """Return the first line of the message of a job, with the error of a traceback that follows it."""
    first, *rest = text.splitlines() or [""]
    return " ".join([first, *(rest[-1:] if first.endswith(":") else [])])


def _document(run: Run, engine: str) -> str:
    """Return the document of `run` for its ranks; UserError if the configuration is wrong."""
    config = load(run.file, run.overrides)
    resume = str(run.resume) if run.resume else None
    target = of_yaml(
        run.file, config, output=run.folder, resume=resume, world_size=run.np, engine=engine, tee=[], columns=None
    )
    return words.join(target.program[-1], target.environment)

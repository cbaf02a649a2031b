"""Runs many documents one after another on ranks that stay alive (`ddl tune --warm`).

Rank 0 reads requests on its standard input, one JSON object a line:

- `{"run": N, "document": TEXT, "variables": {NAME: VALUE}}` runs a document (`config.to_document`);
- `{"stop": N}` asks that run to save and stop;
- `{"end": true}`, or the end of the input, which not every launcher passes on, ends a run as a stop
  does, and then the ranks.

Rank 0 reports the end of a run
by the event `ended`. A run whose end all ranks know of leaves them ready for the next one; any other
failure ends the job. Between runs ranks sleep: a mailbox distributes the requests.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any, BinaryIO

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.messages import LOST, Mailbox
from hvd_train.config import plugins
from hvd_train.config.launch import parse_document
from hvd_train.errors import Diverged, ExitCode
from hvd_train.rank import events, failures
from hvd_train.rank.process import Process, restored
from hvd_train.rank.signals import StopRequest
from hvd_train.rank.worker import Ended, RankRun, check_world, first_in_time
from hvd_train.text import strict_json

DIVERGED_TIMEOUT = 2.0
"""Seconds after which a rank whose loss is not finite aborts the job if the other ranks still train.

They then wait for this rank in the same step.
"""
_POLL_SECONDS = 1.0
"""Seconds between two checks of an idle rank 0 for a signal."""


def run_pool(engine: str, world_size: int) -> int:
    """Run the requests on standard input to its end and return the exit code."""
    process, source = Process(), _standard_input()
    try:
        comm: Communicator = plugins.create("hvd_train.comm.engines", engine)
    except Exception as error:
        failures.report(error, -1, process.output.errors, None)
        return failures.exit_code(error)
    process.begin(comm.rank)
    try:
        check_world(comm, world_size)
        mailbox = comm.mailbox()
        _Pool(engine, comm, mailbox, process, source).run()
    except Exception as error:
        process.fail(error, comm)
    process.end(ExitCode.OK)
    mailbox.close()
    comm.close()
    return ExitCode.OK


class Requests:
    """Reads requests from `source` in a thread and sends the runs to the mailboxes of all `ranks`."""

    def __init__(self, source: BinaryIO, mailbox: Mailbox, ranks: int, stop: StopRequest) -> None:
        """`stop` asks the process to end after the run that is under way."""
        self._source, self._mailbox, self._ranks, self._stop = source, mailbox, ranks, stop
        self._stops: dict[int, StopRequest] = {}
        threading.Thread(target=self._read, name="requests", daemon=True).start()

    def stop_of(self, run: int) -> StopRequest:
        """Return the request to stop of `run`."""
        return self._stops[run]

    def end(self) -> None:
        """Tell all ranks to end."""
        self._send("end")

    def _read(self) -> None:
        for line in self._source:
            request = strict_json.loads_exact(line)
            if "end" in request:
                break
            if "stop" in request:
                self._stops[request["stop"]].set()
            else:
                self._stops = {request["run"]: StopRequest(self._stop)}
                self._send("run", **request)
        self._stop.set()
        self.end()

    def _send(self, kind: str, **values: Any) -> None:
        for rank in range(self._ranks):
            self._mailbox.send(rank, kind, **values)


class _Pool:
    """One rank of the pool, which `comm` joins."""

    def __init__(self, engine: str, comm: Communicator, mailbox: Mailbox, process: Process, source: BinaryIO) -> None:
        self._engine, self._comm, self._mailbox, self._process = engine, comm, mailbox, process
        self._requests = Requests(source, mailbox, comm.size, process.stop) if comm.rank == 0 else None

    def run(self) -> None:
        while (request := self._next()) is not None:
            self._run(request["run"], request["document"], request["variables"])
            gc.collect()
            self._process.activity.rest()

    def _next(self) -> Mapping[str, Any] | None:
        """Return the next request, None if there are no more."""
        while True:
            message = self._mailbox.receive(_POLL_SECONDS if self._requests else None)
            if message is None:
                if self._requests and self._process.stop.is_set():
                    self._requests.end()
            elif message.kind == LOST:
                raise ConnectionError(f"rank {message.source} is lost")
            else:
                return message.values if message.kind == "run" else None

    def _run(self, number: int, document: str, variables: Mapping[str, str]) -> None:
        """Run `document` with further environment `variables`, and report its end."""
        with restored():
            os.environ.update(variables)
            config, launch = parse_document(document)
            engine = plugins.create("hvd_train.comm.engines", self._engine)
            stop = self._requests.stop_of(number) if self._requests else self._process.stop
            run = RankRun(config, launch, engine, self._process, stop, is_last=False)
            ended = self._ended(run, engine)
            self._process.output.release()
            run.comm.close()
        if self._comm.rank == 0:
            code = int(ended.code)
            events.emit(self._process.output.errors, "ended", rank=0, run=number, code=code, message=ended.reason)

    def _ended(self, run: RankRun, engine: Communicator) -> Ended:
        """Return how the run ended on all ranks; end the job if they do not all know of its end."""
        diverged = None
        try:
            ended = run.train()
        except Diverged as error:
            if not run.in_step:
                self._process.fail(error, engine, run.written)
            diverged = error
        except Exception as error:
            self._process.fail(error, engine, run.written)
        give_up = partial(self._process.fail, engine=engine, folder=run.written)
        problem = first_in_time(self._comm, diverged, DIVERGED_TIMEOUT, give_up)
        if problem is None:
            return ended
        if diverged is None:
            raise Diverged(problem)  # on another rank alone, after the last step that ranks took together
        return run.abandon(diverged)


def _standard_input() -> BinaryIO:
    """Return the standard input, which from here on is empty for the code of a run."""
    source = os.fdopen(os.dup(0), "rb")
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return source

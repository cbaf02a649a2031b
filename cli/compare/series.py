"""The runs of a comparison, one after another."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli import launching
from cli.compare import outcome
from cli.compare.entries import Entry, budget, file_sync
from cli.compare.outcome import Outcome
from cli.configuration import load
from cli.execute import Execution
from cli.hosts import Host
from cli.launchers.base import Job
from cli.preflight.start import look
from cli.reach import Reach
from cli.slurm import runs
from cli.target import of_yaml
from hvd_train.errors import ExitCode, UserError

STALL_SECONDS = 300.0
_NEVER = "checkpoint.every=1000000000"
"""Before what the user says: a run that nobody goes on with spends no time on checkpoints, but for its last."""


@dataclass(frozen=True)
class Series:
    """Runs of `file` under each of `entries`, on `hosts`; `launch` has the fields of `hvd_train.config.Launch` that all share."""

    file: Path
    overrides: tuple[str, ...]
    entries: list[Entry]
    budget: str | None
    folder: Path
    launch: dict[str, Any]
    hosts: tuple[Host, ...] = ()
    reach: Reach = field(default_factory=Reach)

    def check(self) -> None:
        """UserError for what is wrong with any of the runs, before the first begins."""
        for entry in self.entries:
            schedule = load(self.file, self._overrides(entry)).schedule.name
            if schedule in {"cosine", "linear"} and self.budget is not None and not self._has_length:
                raise UserError(
                    f"--budget: the schedule '{schedule}' falls over the length of a run, which '{self.budget}' does not tell; "
                    "give epochs or steps, or the override schedule.name=constant"
                )

    def run(self) -> tuple[list[Outcome], int]:
        """What came of the runs that took place, and the exit code: a signal ends the series, a failure does not."""
        outcomes: list[Outcome] = []
        for number, entry in enumerate(self.entries, 1):
            _say(f"{number}/{len(self.entries)} {entry.title}")
            code, found = self._run(number, entry)
            if code >= 128 or code == ExitCode.STOPPED:
                return outcomes, code
            outcomes.append(found)
            _say(f"    {_told(found)}")
        failed = any(o.failure for o in outcomes)
        return outcomes, int(ExitCode.FAILURE if failed else ExitCode.OK)

    @property
    def _has_length(self) -> bool:
        return any(word in (self.budget or "") for word in ("epoch", "step"))

    def _run(self, number: int, entry: Entry) -> tuple[int, Outcome]:
        folder = self.folder / f"{number:02}-{entry.folder}"
        what = of_yaml(self.file, self._overrides(entry), output=folder, resume=None, **self.launch)
        job = Job(
            program=what.program,
            world_size=self.launch["world_size"],
            engine=self.launch["engine"],
            hosts=self.hosts,
            environment=what.environment,
            outlives=what.outlives,
        )
        look(self.reach, what)
        others = [host.name for host in self.reach.others]
        started = launching.command("auto", self.reach.onto(job))
        client = self.reach.client
        execution = _Shown(
            started, job.world_size, quiet=True, stall_timeout=STALL_SECONDS, hosts=others, client=client
        )
        execution.run_folder = folder
        code = execution.run()
        return code, outcome.read(entry.title, folder, _failure(execution.events, code) if code else None)

    def _overrides(self, entry: Entry) -> list[str]:
        length = budget(self.budget) if self.budget is not None else []
        return [_NEVER, *self.overrides, *length, *entry.overrides(file_sync(self.file, self.overrides))]


class _Shown(Execution):
    """Says on a terminal which step the run is at."""

    run_folder: Path

    def _tick(self, now: float) -> None:
        super()._tick(now)
        if sys.stderr.isatty() and (step := runs.last_step(self.run_folder)):
            _say(f"    step {step}", end="")


def _say(text: str, end: str = "\n") -> None:
    """On a terminal, in place of what the last line says that has not ended."""
    print(f"\r{text}" if sys.stderr.isatty() else text, end=end, file=sys.stderr, flush=True)


def _failure(events: list[dict[str, Any]], code: int) -> str:
    """Why in one line; the whole of it has been printed."""
    told = (str(e["message"]) for e in events if e["event"] in {"refused", "failed"} and e.get("message"))
    lines: Iterator[str] = (line for text in told for line in text.splitlines() if line)
    return next(lines, f"exit code {code}")


def _told(found: Outcome) -> str:
    if found.failure:
        return f"failed: {found.failure}"
    last = found.evaluations[-1] if found.evaluations else {}
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in found.metrics.items())
    return f"{metrics} after {last.get('step', 0)} steps, {last.get('seconds', 0.0):.1f} s"

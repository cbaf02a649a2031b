"""The runs of a comparison, one after another."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cli.arguments.configuration import load
from cli.compare import outcome
from cli.compare.entries import StrategyEntry, budget, file_sync
from cli.compare.outcome import LOSS, Outcome
from cli.follow.follower import follow
from cli.follow.supervisor import Limits
from cli.hosts.hostfile import Host
from cli.launch.choose import launch_command
from cli.launch.job import Job
from cli.launch.target import of_yaml
from cli.remote.preflight.start import require_ready
from cli.remote.reach import Reach
from cli.runs import records
from hvd_train.errors import ExitCode, UserError

STALL_SECONDS = 300.0
_NEVER = "checkpoint.every=1000000000"
"""Override that comes before the user's overrides. No run of a comparison is resumed, so only
the last checkpoint is written."""


@dataclass(frozen=True)
class Series:
    """The runs of `file` with each of `entries`, on `hosts`.

    `launch` has the fields of `config.launch.Launch` that all runs share.
    """

    file: Path
    overrides: tuple[str, ...]
    entries: list[StrategyEntry]
    budget: str | None
    folder: Path
    launch: dict[str, Any]
    hosts: tuple[Host, ...] = ()
    reach: Reach = field(default_factory=Reach)
    seeds: int = 1
    """Runs of each entry. Their seeds are that of the configuration, and those that follow it."""

    @property
    def goal(self) -> tuple[str, float] | None:
        """The metric and value of `train.converge`, None without it; after `check`."""
        converge = load(self.file, self._overrides(self.entries[0])).train.converge
        if converge is None or converge.mode not in (None, "min" if converge.metric == LOSS else "max"):
            return None
        return converge.metric, converge.value

    def check(self) -> None:
        """Raise UserError if the configuration of any run is wrong. No run has started yet."""
        for entry in self.entries:
            schedule = load(self.file, self._overrides(entry)).schedule.name
            if schedule in {"cosine", "linear"} and self.budget is not None and not self._has_length:
                raise UserError(
                    f"--budget: the schedule '{schedule}' needs the length of a run, which '{self.budget}' does not give; "
                    "give epochs or steps, or the override schedule.name=constant"
                )

    def run(self) -> tuple[list[Outcome], int]:
        """Run the series and return the outcomes and the exit code.

        A signal ends the series, a failure does not.
        """
        outcomes: list[Outcome] = []
        runs = [(n, entry, seed) for seed in range(self.seeds) for n, entry in enumerate(self.entries, 1)]
        for number, (place, entry, seed) in enumerate(runs, 1):
            _say(f"{number}/{len(runs)} {entry.title}{f', seed {seed + 1} of {self.seeds}' * (self.seeds > 1)}")
            code, result = self._run(place, entry, seed)
            if code >= 128 or code == ExitCode.STOPPED:
                return outcomes, code
            outcomes.append(result)
            _say(f"    {_result_line(result)}")
        failed = any(o.failure for o in outcomes)
        return outcomes, int(ExitCode.FAILURE if failed else ExitCode.OK)

    @property
    def _has_length(self) -> bool:
        return any(word in (self.budget or "") for word in ("epoch", "step"))

    def _run(self, number: int, entry: StrategyEntry, more: int) -> tuple[int, Outcome]:
        """Run `entry` with the seed of its configuration plus `more`."""
        folder = self.folder / f"{number:02}-{entry.folder}"
        config = load(self.file, self._overrides(entry))
        if self.seeds > 1:
            config = load(self.file, [*self._overrides(entry), f"seed={config.seed + more}"])
            folder = folder.with_name(f"{folder.name}-seed-{config.seed}")
        what = of_yaml(self.file, config, output=folder, resume=None, **self.launch)
        job = Job(
            program=what.program,
            world_size=self.launch["world_size"],
            engine=self.launch["engine"],
            hosts=self.hosts,
            environment=what.environment,
            outlives=what.outlives,
        )
        require_ready(self.reach, what)
        result = follow(
            launch_command("auto", self.reach.onto(job)),
            job.world_size,
            reach=self.reach,
            limits=Limits(stall_timeout=STALL_SECONDS),
            quiet=True,
            progress=partial(_show_step, folder),
        )
        failure = _failure(result.events, result.code) if result.code else None
        return result.code, outcome.read(entry.title, folder, failure, config.seed)

    def _overrides(self, entry: StrategyEntry) -> list[str]:
        length = budget(self.budget) if self.budget is not None else []
        return [_NEVER, *self.overrides, *length, *entry.overrides(file_sync(self.file, self.overrides))]


def _show_step(folder: Path) -> None:
    """Show the last step of the run in `folder` on a terminal."""
    if sys.stderr.isatty() and (step := records.last_step(folder)):
        _say(f"    step {step}", end="")


def _say(text: str, end: str = "\n") -> None:
    """Print a line on stderr. On a terminal it replaces the last line if that has no newline."""
    print(f"\r{text}" if sys.stderr.isatty() else text, end=end, file=sys.stderr, flush=True)


def _failure(events: Sequence[Mapping[str, Any]], code: int) -> str:
    """Return the reason in one line. The whole message has been printed before."""
    messages = (str(e["message"]) for e in events if e["event"] in {"refused", "failed"} and e.get("message"))
    lines: Iterator[str] = (line for text in messages for line in text.splitlines() if line)
    return next(lines, f"exit code {code}")


def _result_line(result: Outcome) -> str:
    if result.failure:
        return f"failed: {result.failure}"
    last = result.evaluations[-1] if result.evaluations else {}
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
    return f"{metrics} after {last.get('step', 0)} steps, {last.get('seconds', 0.0):.1f} s"

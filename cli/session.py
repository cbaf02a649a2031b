"""A job from its first start to its end: each start, and the restarts on the hosts that are left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cli import script_end
from cli.execute import Execution
from cli.hosts import Host, format_hosts
from cli.launchers.base import Command
from cli.reach import Reach
from cli.restarts import Origin, again
from cli.run_folder import is_begun
from cli.streams import say
from cli.target import Target
from hvd_train.errors import ExitCode, UserError


@dataclass(frozen=True)
class Start:
    """One start of a job: its `command` and `target`, for `ranks` on `places`."""

    command: Command
    target: Target
    places: tuple[Host, ...]
    ranks: int


@dataclass
class Session:
    """`prepare` makes a start of so many ranks on these hosts from a run folder, or from nothing.

    A job that loses a rank or a host is started again up to `max_restarts` times with at least `min_np` ranks, by default as
    many as it had. `timeout` is for all starts together. `fewest` and `stall_timeout` are those of `Execution`.
    """

    prepare: Callable[[tuple[Host, ...], int, str | None], Start]
    reach: Reach
    oversubscribe: bool = False
    timeout: float | None = None
    stall_timeout: float = 0
    max_restarts: int = 0
    min_np: int | None = None
    fewest: int | None = None
    quiet: bool = False
    verbose: bool = False
    _began: float = field(default_factory=time.monotonic, init=False)

    def run(self, start: Start, resume: str | None) -> int:
        """The exit code of the job, which was first told to go on from `resume`."""
        origin = Origin.of(None if start.target.is_script else start.target.folder, resume)
        restarts = 0
        code, wanted = self._follow(start)
        while code == ExitCode.FAILURE and not wanted and restarts < self.max_restarts:
            restarts += 1
            fewest = self.min_np or start.ranks
            try:
                places, ranks = again(
                    start.places, start.ranks, fewest, oversubscribe=self.oversubscribe, client=self.reach.client
                )
            except UserError as error:
                say(str(error))
                break
            start = self.prepare(places, ranks, origin.source())
            where = f" on {format_hosts(places)}" if places else ""
            say(f"restart {restarts} of {self.max_restarts}: {ranks} ranks{where}")
            code, wanted = self._follow(start)
        self._end(start.target, code)
        return code

    def _follow(self, start: Start) -> tuple[int, bool]:
        """The exit code, and whether somebody asked for the end."""
        if self.verbose:
            say(str(start.command))
        execution = Execution(
            start.command,
            start.ranks,
            timeout=self.timeout,
            spent=time.monotonic() - self._began,
            quiet=self.quiet,
            verbose=self.verbose,
            stall_timeout=self.stall_timeout,
            hosts=[host.name for host in self.reach.others if host in start.places],
            fewest=self.fewest,
            client=self.reach.client,
        )
        return execution.run(), bool(execution.requests)

    def _end(self, target: Target, code: int) -> None:
        folder = target.folder
        if folder is None or not is_begun(folder):
            return
        if target.is_script:
            script_end.note(folder, code)
        if code:
            say(f"see {folder}")

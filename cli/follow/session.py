"""Run a job from its first start to its end, with restarts on the hosts that are left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from cli.follow import script_end
from cli.follow.follower import Result, follow
from cli.follow.restarts import Origin, Restarts
from cli.follow.supervisor import Limits
from cli.hosts.hostfile import Host, format_hosts
from cli.launch.start import Start
from cli.launch.target import Target
from cli.output.streams import say
from cli.remote.reach import Reach
from cli.runs.folder import is_begun
from hvd_train.errors import ExitCode, UserError

Prepare = Callable[[tuple[Host, ...], int, str | None], Start]
"""Makes a start from hosts, a number of ranks, and the run folder to resume from or None."""


@dataclass(frozen=True)
class Session:
    """Runs a job and restarts it after the loss of a rank or host.

    `prepare` makes the start of each restart. The timeout in `limits` is for all starts together.
    `quiet` and `verbose` are passed to `follow`.
    """

    prepare: Prepare
    reach: Reach
    limits: Limits
    restarts: Restarts
    quiet: bool = False
    verbose: bool = False

    def run(self, start: Start, resume: str | None) -> int:
        """Run the job from `start`, which resumes from `resume`; return its exit code."""
        origin = Origin.of(None if start.target.is_script else start.target.folder, resume)
        began = time.monotonic()
        restarts = 0
        result = self._follow(start, began)
        while result.code == ExitCode.FAILURE and not result.stop_requested and restarts < self.restarts.most:
            restarts += 1
            try:
                hosts, ranks = self.restarts.choose(start.hosts, start.ranks, self.reach.client)
            except UserError as error:
                say(str(error))
                break
            start = self.prepare(hosts, ranks, origin.source())
            where = f" on {format_hosts(hosts)}" if hosts else ""
            say(f"restart {restarts} of {self.restarts.most}: {ranks} ranks{where}")
            result = self._follow(start, began)
        _finish(start.target, result.code)
        return result.code

    def _follow(self, start: Start, began: float) -> Result:
        if self.verbose:
            say(str(start.command))
        return follow(
            start.command,
            start.ranks,
            reach=self.reach.to(start.hosts),
            limits=replace(self.limits, spent=time.monotonic() - began),
            quiet=self.quiet,
            verbose=self.verbose,
        )


def _finish(target: Target, code: int) -> None:
    """Complete the summary of a script's run, and name the run folder of a job that failed."""
    folder = target.folder
    if folder is None or not is_begun(folder):
        return
    if target.is_script:
        script_end.note(folder, code)
    if code:
        say(f"see {folder}")

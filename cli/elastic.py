"""Horovod elastic: ranks come and go with the hosts that a program of the user's prints."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from cli.hosts import Host, parse_hostfile
from hvd_train.errors import UserError

SECONDS = 30
"""That the program may take."""
OPTION = "--host-discovery-script"


@dataclass(frozen=True)
class Elastic:
    """Between `fewest` and `most` ranks, on the hosts that the program `script` prints: one a line, as h1:4."""

    script: Path
    fewest: int
    most: int | None = None

    def hosts(self) -> tuple[Host, ...]:
        """Those that there are now, none included; UserError where the program fails or prints something else."""
        try:
            done = subprocess.run(
                [self.script.absolute()], capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"{OPTION}: {self.script} does not run ({error}); expected a program (chmod +x)") from None
        if done.returncode:
            raise UserError(f"{OPTION}: {self.script} ended with code {done.returncode}: {done.stderr.strip()}")
        return parse_hostfile(done.stdout, f"{OPTION}: {self.script}") if done.stdout.strip() else ()

    def first(self, np: int | None, hosts: tuple[Host, ...]) -> int:
        """Ranks to begin with: `np`, or as many as there are slots now; UserError where bounds are not kept."""
        ranks = np or max(self.fewest, sum(host.slots for host in hosts))
        most = max(self.fewest, ranks) if self.most is None else self.most
        if most < self.fewest:
            raise UserError(f"--max-np: expected at least the {self.fewest} ranks of --min-np, got {most}")
        if np is not None and not self.fewest <= np <= most:
            raise UserError(f"--np: expected {self.fewest} to {most} ranks (--min-np, --max-np), got {np}")
        return min(ranks, most)

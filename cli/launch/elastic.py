"""Horovod elastic: the number of ranks follows the hosts that a program of the user prints."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from cli.hosts.hostfile import Host, given_hosts, parse_hostfile
from hvd_train.errors import UserError

SECONDS = 30
"""Time limit of the discovery program."""
OPTION = "--host-discovery-script"


@dataclass(frozen=True)
class Elastic:
    """Between `fewest` and `most` ranks, on the hosts that `script` prints, one h1:4 a line."""

    script: Path
    fewest: int
    most: int | None = None

    def hosts(self) -> tuple[Host, ...]:
        """Run the program and return its hosts, possibly none.

        UserError if it fails or prints something else.
        """
        try:
            done = subprocess.run(
                [self.script.absolute()], capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"{OPTION}: {self.script} cannot be run ({error}); expected a program (chmod +x)") from None
        if done.returncode:
            raise UserError(f"{OPTION}: {self.script} ended with code {done.returncode}: {done.stderr.strip()}")
        return parse_hostfile(done.stdout, f"{OPTION}: {self.script}") if done.stdout.strip() else ()

    def first(self, np: int | None, hosts: tuple[Host, ...]) -> int:
        """Return the number of ranks to begin with: `np`, or the slots of `hosts`.

        UserError if it is out of bounds.
        """
        ranks = np or max(self.fewest, sum(host.slots for host in hosts))
        most = max(self.fewest, ranks) if self.most is None else self.most
        if most < self.fewest:
            raise UserError(f"--max-np: expected at least the {self.fewest} ranks of --min-np, got {most}")
        if np is not None and not self.fewest <= np <= most:
            raise UserError(f"--np: expected {self.fewest} to {most} ranks (--min-np, --max-np), got {np}")
        return min(ranks, most)


def requested(
    script: Path | None, fewest: int | None, most: int | None, launcher: str, restarts: int
) -> Elastic | None:
    """Return the elastic job that the options request, or None.

    UserError for options that contradict it.
    """
    if script is None:
        if most is not None:
            raise UserError(f"--max-np is for Horovod elastic; give {OPTION} too")
        return None
    if launcher != "horovodrun":
        raise UserError(f"{OPTION} needs --launcher horovodrun: only Horovod elastic can change the number of ranks")
    if restarts:
        raise UserError(f"--max-restarts cannot be used with {OPTION}, because Horovod restarts ranks itself")
    return Elastic(script, fewest or 1, most)


def elastic_hosts(text: str | None, file: Path | None, elastic: Elastic | None) -> tuple[Host, ...]:
    """Return the hosts of --hosts, --hostfile or `elastic`.

    UserError if more than one of them is given.
    """
    options = {"--hosts": text, "--hostfile": file, OPTION: elastic}
    first, *others = [option for option, value in options.items() if value is not None] or [""]
    if others:
        raise UserError(f"{first} and {others[0]} both name the hosts; give one of them")
    return elastic.hosts() if elastic is not None else given_hosts(text, file)

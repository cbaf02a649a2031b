"""The contract of a launcher: it turns a `Job` into a `Command` and runs nothing.

A launcher is a file in this package whose `create()` returns a `Launcher`. Because a command is data, `--dry-run`
prints it, the tests assert the whole of it, and `cli.execute` alone knows how to run one.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from cli.elastic import Elastic
from cli.hosts import Host
from cli.network import Network

Binding = Literal["core", "socket", "numa", "none"]


@dataclass(frozen=True)
class Job:
    """What is to run and where; the same for every launcher.

    `program` is one rank's argv. Without `hosts` the job runs on this machine, with as many slots as ranks.
    `environment` holds variables that every rank, remote ones too, must see with these values; `forward` names
    variables that ranks take over from the shell as it is. `bind` of None leaves the choice to the launcher, as `network` does.
    `ssh` are words for the ssh that the launcher starts, and `words` others for the launcher itself.
    With `elastic`, `world_size` ranks begin on `hosts`, and others come and go. `outlives`: when a rank dies, others may go on.
    """

    program: tuple[str, ...]
    world_size: int
    engine: str
    hosts: tuple[Host, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    forward: tuple[str, ...] = ()
    bind: Binding | None = None
    oversubscribe: bool = False
    network: Network | None = None
    elastic: Elastic | None = None
    outlives: bool = False
    ssh: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Command:
    """A process to start: argv, variables added to this shell's environment, and remarks for the user.

    `unset` names variables of this shell that it must not see. `tags_output` says that it puts the rank in front of every
    line that a rank prints.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tags_output: bool = False
    unset: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line that does the same when pasted into a POSIX shell."""
        assignments = [f"{k}={shlex.quote(v)}" for k, v in self.environment.items()]
        without = ["env", *(word for name in self.unset for word in ("-u", name))] if self.unset else []
        return " ".join([*without, *assignments, shlex.join(self.argv)])

    def within(self, shell: Mapping[str, str]) -> dict[str, str]:
        """The environment of the process, started from one with the variables of `shell`."""
        return {**{name: value for name, value in shell.items() if name not in self.unset}, **self.environment}


class Launcher(Protocol):
    def command(self, job: Job) -> Command:
        """The command that runs `job`; UserError where this launcher cannot, with what to do instead."""

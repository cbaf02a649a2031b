"""The contract of a launcher: it turns a `Job` into a `Command` and runs nothing.

A launcher is a file in `cli.launch.launchers` whose `create()` returns a `Launcher`. A command is
data: `--dry-run` prints it, tests assert the whole of it, and only `cli.follow` runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from cli.hosts.hostfile import Host
from cli.hosts.network import Network
from cli.launch.elastic import Elastic
from cli.output.shell import joined, quoted

Binding = Literal["core", "socket", "numa", "none"]


@dataclass(frozen=True)
class Job:
    """What to run and where, for any launcher.

    `program` is the argv of one rank. Without `hosts`, the job runs on this machine, with one slot
    per rank. `environment` has the variables of every rank, and `forward` names the variables that
    ranks get from this shell. If `bind` or `network` is None, the launcher chooses. `ssh` are
    options for the ssh of the launcher, `words` options for the launcher itself. With `elastic`,
    `world_size` ranks start on `hosts`, and their number changes later. `outlives` is True if the
    other ranks may continue when a rank dies.
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
    """A process to start: its argv, variables to add to the environment, and notes for the user.

    `unset` names variables of this shell that the process must not get. `tags_output` is True if
    the process prefixes every line of a rank with the number of the rank. `prefix` is a program
    that starts `argv`, such as `taskset MASK`.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tags_output: bool = False
    unset: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return one line that starts the same process when it is pasted into bash, zsh or ksh."""
        assignments = [f"{k}={quoted(v)}" for k, v in self.environment.items()]
        without = ["env", *(word for name in self.unset for word in ("-u", name))] if self.unset else []
        return " ".join([*without, *assignments, joined((*self.prefix, *self.argv))])

    def within(self, shell: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of the process, given the variables of this shell."""
        return {**{name: value for name, value in shell.items() if name not in self.unset}, **self.environment}


class Launcher(Protocol):
    def command(self, job: Job) -> Command:
        """Return the command that runs `job`.

        UserError says what to do if this launcher cannot run it.
        """

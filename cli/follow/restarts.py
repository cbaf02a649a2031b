"""Choose hosts and checkpoint for the restart of a job that has lost a rank or a host."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.hosts.hostfile import Host
from cli.hosts.machine import Machine
from cli.remote.ssh import PLAIN, Client
from hvd_train.errors import UserError
from hvd_train.rank.submitted import has_checkpoint

SECONDS = 15.0
"""Seconds that a host has to answer before it counts as lost."""


@dataclass(frozen=True)
class Restarts:
    """How often and where a job may be restarted.

    At most `most` restarts are made, each with at least `min_ranks` ranks. Without `min_ranks`, a
    restart needs as many ranks as the start before. `oversubscribe` allows more ranks than slots.
    """

    most: int = 0
    min_ranks: int | None = None
    oversubscribe: bool = False

    def choose(self, hosts: tuple[Host, ...], ranks: int, client: Client = PLAIN) -> tuple[tuple[Host, ...], int]:
        """Return the `hosts` that answer, and how many of `ranks` they have slots for.

        A job without `hosts` keeps all its ranks. UserError if too few slots are left.
        """
        left = _answering(hosts, client)
        slots = sum(host.slots for host in left)
        found = ranks if self.oversubscribe or not hosts else min(ranks, slots)
        needed = self.min_ranks or ranks
        if found < needed or (hosts and not left):
            gone = ", ".join(host.name for host in hosts if host not in left) or "no host"
            raise UserError(
                f"cannot restart: {gone} is lost, and {slots} slots are left for {needed} ranks; "
                "--min-np allows fewer ranks"
            )
        return left, found


@dataclass(frozen=True)
class Origin:
    """What a job resumed from at its first start, and the checkpoints in its run folder then."""

    folder: Path | None
    resume: str | None
    checkpoints: frozenset[tuple[str, int]]

    @classmethod
    def of(cls, folder: Path | None, resume: str | None) -> Origin:
        return cls(folder, None if resume == "latest" else resume, _checkpoints(folder))

    def source(self) -> str | None:
        """Return what a restart resumes from.

        It is the run folder if the job has changed its checkpoints, else `resume`. If there is
        neither a checkpoint nor `resume`, the run folder is renamed and the result is None.
        """
        now = _checkpoints(self.folder)
        if self.resume is not None and (now == self.checkpoints or not now):
            return self.resume
        return _source(self.folder)


def _checkpoints(folder: Path | None) -> frozenset[tuple[str, int]]:
    """Return name and modification time of each checkpoint of a run."""
    manifests = [] if folder is None else folder.glob("checkpoints/*step-*/manifest.json")
    return frozenset((path.parent.name, path.stat().st_mtime_ns) for path in manifests)


def _source(folder: Path | None) -> str | None:
    if folder is None:
        return None
    with contextlib.suppress(OSError):
        folder.rmdir()  # empty if the command made it and ranks wrote nothing
    if not folder.exists():
        return None
    if has_checkpoint(folder):
        return str(folder)
    number = next(n for n in range(1, 10**6) if not _aside(folder, n).exists())
    folder.rename(_aside(folder, number))
    return None


def _answering(hosts: Sequence[Host], client: Client) -> tuple[Host, ...]:
    """Return this machine and the hosts that answer."""
    machine = Machine.here()
    others = [host.name for host in machine.others(hosts)]
    lost = {*others} - client.reachable(others, SECONDS)
    return tuple(host for host in hosts if host.name not in lost)


def _aside(folder: Path, number: int) -> Path:
    return folder.with_name(f"{folder.name}.lost-{number}")

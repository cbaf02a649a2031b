"""Start a job again after a rank or a host was lost, on the hosts that are still there."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.hosts import Host
from cli.machine import Machine
from cli.ssh import PLAIN, Client
from hvd_train.errors import UserError
from hvd_train.submitted import has_checkpoint

SECONDS = 15.0
"""How long a host may take to answer before it counts as lost."""


def again(
    hosts: tuple[Host, ...], wanted: int, fewest: int, *, oversubscribe: bool, client: Client = PLAIN
) -> tuple[tuple[Host, ...], int]:
    """The hosts that still answer, and how many of the `wanted` ranks find a slot there; without hosts, all do.

    UserError where those are fewer than `fewest`.
    """
    left = _survivors(hosts, client)
    slots = sum(host.slots for host in left)
    ranks = wanted if oversubscribe or not hosts else min(wanted, slots)
    if ranks < fewest or (hosts and not left):
        gone = ", ".join(host.name for host in hosts if host not in left) or "no host"
        raise UserError(
            f"no restart: {gone} is lost, and {slots} slots are left for {fewest} ranks; --min-np allows fewer"
        )
    return left, ranks


@dataclass(frozen=True)
class Origin:
    """What a job was to go on from when it was first started (`--resume`), and the `checkpoints` that its `folder` then had."""

    folder: Path | None
    resume: str | None
    checkpoints: frozenset[tuple[str, int]]

    @classmethod
    def of(cls, folder: Path | None, resume: str | None) -> Origin:
        return cls(folder, None if resume == "latest" else resume, _checkpoints(folder))

    def source(self) -> str | None:
        """What to go on from now: the run folder, once the job has changed the checkpoints in it; until then as at first.

        A folder without any checkpoint is put aside where the job began from nothing.
        """
        now = _checkpoints(self.folder)
        if self.resume is not None and (now == self.checkpoints or not now):
            return self.resume
        return _source(self.folder)


def _checkpoints(folder: Path | None) -> frozenset[tuple[str, int]]:
    """Name and time of each checkpoint of a run."""
    manifests = [] if folder is None else folder.glob("checkpoints/*step-*/manifest.json")
    return frozenset((path.parent.name, path.stat().st_mtime_ns) for path in manifests)


def _source(folder: Path | None) -> str | None:
    if folder is None:
        return None
    with contextlib.suppress(OSError):
        folder.rmdir()  # claimed for ranks that wrote nothing to it
    if not folder.exists():
        return None
    if has_checkpoint(folder):
        return str(folder)
    number = next(n for n in range(1, 10**6) if not _aside(folder, n).exists())
    folder.rename(_aside(folder, number))
    return None


def _survivors(hosts: Sequence[Host], client: Client) -> tuple[Host, ...]:
    """Those that answer; this machine does."""
    machine = Machine.here()
    others = [host.name for host in machine.others(hosts)]
    lost = {*others} - client.reachable(others, SECONDS)
    return tuple(host for host in hosts if host.name not in lost)


def _aside(folder: Path, number: int) -> Path:
    return folder.with_name(f"{folder.name}.lost-{number}")

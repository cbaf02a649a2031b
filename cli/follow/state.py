"""The state of every rank of a job, by the events that ranks report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RankPosition:
    """The point that a rank had reached at its last heartbeat.

    `turn` is a number that grows with each phase. `line` is the innermost call and its source line.
    """

    step: int | None = None
    phase: str | None = None
    turn: int | None = None
    line: str = ""

    def __str__(self) -> str:
        step = "" if self.step is None else f"step {self.step + 1}, {self.phase}: "
        return f"{step}{self.line or 'starting'}"


@dataclass
class Rank:
    """A rank: its process, and what it reported last.

    `machine` is `events.machine()` of its host, as hosts may share a hostname. `parent` is the
    process that started it. `last_event` is the time at which an event arrived, `last_progress` the
    time at which the position changed, both in monotonic seconds of this command.
    """

    number: int
    host: str
    machine: str
    pid: int
    parent: int
    last_event: float
    last_progress: float
    position: RankPosition = RankPosition()

    def __str__(self) -> str:
        return f"rank {self.number} on {self.host}"


@dataclass
class JobState:
    """The state of `world_size` ranks.

    `lost` are ranks that died and that the other ranks continue without, as these have reported.
    """

    world_size: int
    ranks: dict[int, Rank] = field(default_factory=dict)
    started: set[int] = field(default_factory=set)
    done: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    _names: dict[str, str] = field(default_factory=dict, init=False)
    """The name of each machine in the user's list of hosts."""

    def record(self, event: Mapping[str, Any], now: float) -> None:
        """Update the state by any event of a rank that arrived at `now`."""
        number = event.get("rank", -1)
        if number < 0 or number >= self.world_size:
            return
        if event["event"] != "beat":
            self.started.add(number)
        if event["event"] == "done":
            self.done.add(number)
        if event["event"] == "lost":
            self.lost.add(event["lost"])
        rank = self.ranks.get(number)
        if rank is None or rank.pid != event["pid"]:
            rank = Rank(number, event["host"], event["machine"], event["pid"], event.get("parent", 0), now, now)
            self.ranks[number] = rank
            self._distinguish_hosts()
        rank.last_event = now
        if event["event"] == "beat":
            if event["turn"] != rank.position.turn:
                rank.last_progress = now
            rank.parent = event["parent"]
            rank.position = RankPosition(event["step"], event["phase"], event["turn"], event["at"])

    def name_host(self, machine: str, name: str) -> None:
        """Use `name` for the host `machine` where several hosts share a hostname."""
        self._names[machine] = name
        self._distinguish_hosts()

    def running(self, machine: str | None = None) -> list[Rank]:
        """Return the ranks of a machine, or of all, that have reported something but not their end.

        Lost ranks are left out.
        """
        ranks = [self.ranks[number] for number in sorted(self.ranks.keys() - self.ended)]
        return [rank for rank in ranks if machine in {None, rank.machine}]

    def on_host(self, name: str) -> list[Rank]:
        """Return the ranks on the host that a launcher calls `name`."""
        names = ((rank, (rank.host, self._names.get(rank.machine, ""))) for rank in self.ranks.values())
        return [rank for rank, known in names if any(_same_host(one, name) for one in known)]

    @property
    def ended(self) -> set[int]:
        """Ranks that are done or lost."""
        return self.done | self.lost

    def describe(self, culprits: Sequence[Rank] = ()) -> str:
        """Return the last position of each culprit, then the positions of other running ranks."""
        lines = [f"{rank}: last at {rank.position}" for rank in culprits]
        return "\n".join([*lines, *positions(rank for rank in self.running() if rank not in culprits)])

    def _distinguish_hosts(self) -> None:
        machines: dict[str, set[str]] = {}
        for rank in self.ranks.values():
            machines.setdefault(rank.host, set()).add(rank.machine)
        for rank in self.ranks.values():
            if len(machines[rank.host]) > 1:
                rank.host = self._names.get(rank.machine, rank.host)


def positions(ranks: Iterable[Rank]) -> list[str]:
    """Return a line for each host and position, with the ranks that are there."""
    found: dict[tuple[str, str], list[int]] = {}
    for rank in ranks:
        found.setdefault((rank.host, str(rank.position)), []).append(rank.number)
    return [f"{listed(numbers)} on {host}: at {position}" for (host, position), numbers in found.items()]


def listed(numbers: Iterable[int]) -> str:
    """Return "rank 1" or "ranks 1, 2"."""
    ordered = sorted(numbers)
    return f"rank{'s' * (len(ordered) > 1)} {', '.join(map(str, ordered))}"


def _same_host(one: str, other: str) -> bool:
    """Return True if two names are equal, or equal but for the domain that one of them lacks."""
    return one == other or one.partition(".")[0] == other or one == other.partition(".")[0]

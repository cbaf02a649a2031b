"""Where each rank was last heard of, and whether the job still moves."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PAUSE = 5.0
"""Seconds between two looks after which this process itself must have been stopped: nobody is to blame."""

CONSEQUENCES = 20.0
"""Seconds within which a job ends because a process of it did."""

START = 60.0
"""Seconds that a rank may take to start, at least: Python, torch and MPI come from slow disks."""

LATE = 3.0
"""Seconds after which a rank that is well, and speaks every second, would have been heard of."""

_WAITING = {"comm", "serve"}
"""Phases in which a rank waits for others."""

_NOT_TIMED = "checkpoint"
"""The phase that takes as long as disks do."""


@dataclass
class Rank:
    """What a rank said last. `heard` and `moved` are when it spoke and when it said something new, by our clock."""

    number: int
    host: str
    machine: str
    """See `events.machine`; hosts may share a name."""
    pid: int
    parent: int
    heard: float
    moved: float
    step: int | None = None
    phase: str | None = None
    turn: int | None = None
    at: str = ""

    @property
    def place(self) -> str:
        step = "" if self.step is None else f"step {self.step + 1}, {self.phase}: "
        return f"{step}{self.at or 'starting'}"

    def __str__(self) -> str:
        return f"rank {self.number} on {self.host}"


@dataclass(frozen=True)
class Gone:
    """A process on a host that ended, or with `pid` 0 the connection, and the `ranks` that went with it."""

    pid: int
    when: float
    ranks: list[Rank]
    wall: float = field(default_factory=time.time)
    """By the clock that ranks tell the time of their failures by."""

    @property
    def rank(self) -> Rank | None:
        """The rank that the process was."""
        return next((r for r in self.ranks if r.pid == self.pid), None)

    def __str__(self) -> str:
        if self.rank:
            return f"{self.rank} ended without a word"
        host = self.ranks[0].host
        return f"the launcher's daemon ended on {host}" if self.pid else f"the connection to {host} is lost"


@dataclass
class Watchdog:
    """Hears what `world_size` ranks say; `seconds` of standing still is too long, and 0 is never."""

    world_size: int
    seconds: float
    began: float
    ranks: dict[int, Rank] = field(default_factory=dict)
    started: set[int] = field(default_factory=set)
    done: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    """Ranks that died and that the others go on without, as these said themselves."""
    _names: dict[str, str] = field(default_factory=dict, init=False)
    _looked: float = field(init=False)
    _gone: Gone | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._looked = self.began

    def hear(self, event: Mapping[str, Any], now: float) -> None:
        """Take note of any event of a rank."""
        number = event.get("rank", -1)
        if number < 0 or number >= self.world_size:
            return
        if event["event"] != "beat":
            self.started.add(number)
        if event["event"] == "done":
            self.done.add(number)
        if event["event"] == "lost":
            self._lose(event["lost"])
        rank = self.ranks.get(number)
        if rank is None or rank.pid != event["pid"]:
            rank = Rank(number, event["host"], event["machine"], event["pid"], event.get("parent", 0), now, now)
            self.ranks[number] = rank
            self._tell_apart()
        rank.heard = now
        if event["event"] == "beat":
            if event["turn"] != rank.turn:
                rank.moved = now
            rank.parent = event["parent"]
            rank.step, rank.phase, rank.turn, rank.at = (event[k] for k in ("step", "phase", "turn", "at"))

    def name(self, machine: str, name: str) -> None:
        """Take note that the user calls the host `machine` by this `name`; used where hosts share a hostname."""
        self._names[machine] = name
        self._tell_apart()

    def end(self, machine: str, pid: int, now: float) -> None:
        """Take note that a process on `machine` ended, or with `pid` 0 the connection; of several, the first is the cause."""
        ranks = [r for r in self.running() if r.machine == machine and pid in {0, r.pid, r.parent}]
        if ranks and (self._gone is None or now - self._gone.when > CONSEQUENCES):
            self._gone = Gone(pid, now, ranks)

    def lose_host(self, host: str, now: float) -> None:
        """Take note that a launcher has lost `host`, by the name that it has there."""
        for rank in self.ranks.values():
            if _same_host(rank.host, host) or _same_host(self._names.get(rank.machine, ""), host):
                self.end(rank.machine, 0, now)

    def gone(self, now: float) -> Gone | None:
        """What ended before the job did, if a rank that has not come to its end went with it."""
        gone = self._gone
        if gone is None or now - gone.when > CONSEQUENCES or all(r.number in self.done | self.lost for r in gone.ranks):
            return None
        return gone

    def unreported(self, now: float, seconds: float) -> bool:
        """Whether a rank ended `seconds` ago, and neither it nor another one has said why."""
        gone = self.gone(now)
        return gone is not None and gone.rank is not None and now - gone.when > seconds

    def running(self) -> list[Rank]:
        """Ranks that have been heard of and have neither come to their end nor been given up."""
        return [r for n, r in sorted(self.ranks.items()) if n not in self.done | self.lost]

    def look(self, now: float) -> str | None:
        """Why the job stands still, if it has for too long."""
        if now - self._looked > PAUSE:
            for rank in self.ranks.values():
                rank.heard = rank.moved = now
        self._looked = now
        if not self.seconds:
            return None
        return self._absent(now) or self._silent(now) or self._stuck(now)

    def accuse(self, culprits: Sequence[Rank]) -> str:
        """A line for each of `culprits`, then where the others are."""
        lines = [f"{rank}: last at {rank.place}" for rank in culprits]
        return "\n".join([*lines, *self._where(r for r in self.running() if r not in culprits)])

    def _absent(self, now: float) -> str | None:
        """Ranks that were never heard of, or wait for the engine: MPI and Horovod hang there on a wrong network."""
        missing = set(range(self.world_size)) - self.started - self.lost
        patience = max(self.seconds, START)
        if not missing or now - self.began <= patience:
            return None
        return "\n".join([f"{_named(missing)} did not start within {patience:g} seconds", *self._where(self.running())])

    def _silent(self, now: float) -> str | None:
        silent = [r for r in self.running() if now - r.heard > self.seconds]
        late = [r for r in self.running() if LATE < now - r.heard <= self.seconds]
        if not silent or late:  # ranks fall silent one after the other: name all of them
            return None
        which = _named(r.number for r in silent)
        return f"no word from {which} for {self.seconds:g} seconds (--stall-timeout)\n{self.accuse(silent)}"

    def _stuck(self, now: float) -> str | None:
        """Every rank speaks, and none has begun anything new."""
        running = self.running()
        if not running or any(r.turn is None or r.phase == _NOT_TIMED for r in running):
            return None
        patience = max(self.seconds, START) if any(r.phase == "start" for r in running) else self.seconds
        if now - max(r.moved for r in running) <= patience:
            return None
        late = [r for r in running if r.phase not in _WAITING]
        head = f"no rank has moved for {patience:g} seconds (--stall-timeout)"
        who = f"; the others wait for {_named(r.number for r in late)}" if 0 < len(late) < len(running) else ""
        return "\n".join([head + who, *self._where(running)])

    def _tell_apart(self) -> None:
        machines: dict[str, set[str]] = {}
        for rank in self.ranks.values():
            machines.setdefault(rank.host, set()).add(rank.machine)
        for rank in self.ranks.values():
            if len(machines[rank.host]) > 1:
                rank.host = self._names.get(rank.machine, rank.host)

    def _lose(self, number: int) -> None:
        self.lost.add(number)
        if self._gone and all(r.number in self.lost for r in self._gone.ranks):
            self._gone = None  # so that the next end is noticed

    def _where(self, ranks: Iterable[Rank]) -> list[str]:
        """A line for each host and place."""
        found: dict[tuple[str, str], list[int]] = {}
        for rank in ranks:
            found.setdefault((rank.host, rank.place), []).append(rank.number)
        return [f"{_named(numbers)} on {host}: at {place}" for (host, place), numbers in found.items()]


def _same_host(one: str, other: str) -> bool:
    """Whether two names may be of one host: one of them may lack the domain."""
    return one == other or one.partition(".")[0] == other or one == other.partition(".")[0]


def _named(numbers: Iterable[int]) -> str:
    listed = sorted(numbers)
    return f"rank{'s' * (len(listed) > 1)} {', '.join(map(str, listed))}"

"""Packs the runs of trials on the slots of hosts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cli.hosts.hostfile import Host
from cli.tune.runner import Placement
from hvd_train.rank.affinity import SLOTS

HERE = "localhost"
OVERTAKEN = 16
"""Runs that may overtake the first one that waits. Then it gets the next slots that suffice."""


@dataclass(frozen=True)
class Slot:
    """The slot `index` of `host`."""

    host: str
    index: int

    def __str__(self) -> str:
        return f"{self.host}:{self.index}"


class Slots:
    """The free slots of `hosts`."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self._hosts = {host.name: host for host in hosts}
        self._free = {host.name: list(range(host.slots)) for host in hosts}
        self._overtaken = 0

    @property
    def count(self) -> int:
        return sum(host.slots for host in self._hosts.values())

    @property
    def free(self) -> int:
        return sum(map(len, self._free.values()))

    def take(self, np: int) -> tuple[Slot, ...]:
        """Take `np` slots, on as few hosts as possible; return none if fewer are free.

        A run that fits on one host gets the host with the fewest free slots, which leaves the
        others for runs that need more.
        """
        if np > self.free:
            return ()
        fitting = [name for name, free in self._free.items() if len(free) >= np]
        if fitting:
            order = [min(fitting, key=lambda name: len(self._free[name]))]
        else:
            order = sorted(self._free, key=lambda name: -len(self._free[name]))
        taken: list[Slot] = []
        for name in order:
            free = self._free[name]
            number = min(np - len(taken), len(free))
            taken += [Slot(name, index) for index in free[:number]]
            del free[:number]
        return tuple(taken)

    def take_first(self, waiting: Sequence[int]) -> tuple[int, tuple[Slot, ...]] | None:
        """Take slots for the first run that fits, given the numbers of ranks of the `waiting` runs.

        Return its place in `waiting` and its slots, None if none may start.
        """
        for place, np in enumerate(waiting[:1] if self._overtaken >= OVERTAKEN else waiting):
            if slots := self.take(np):
                self._overtaken = self._overtaken + 1 if place else 0
                return place, slots
        return None

    def give(self, slots: Iterable[Slot]) -> None:
        """Return slots that a run no longer uses."""
        for slot in slots:
            self._free[slot.host].append(slot.index)
            self._free[slot.host].sort()

    def placement(self, slots: Sequence[Slot]) -> Placement:
        """Return where the ranks of a run on `slots` go."""
        counts = Counter(slot.host for slot in slots)
        hosts = tuple(Host(name, n, self._hosts[name].user, self._hosts[name].port) for name, n in counts.items())
        local = tuple(counts) == (HERE,)
        return Placement(() if local else hosts, tuple(map(str, slots)), self._variables(slots))

    def _variables(self, slots: Sequence[Slot]) -> Mapping[str, str]:
        """Return DDL_SLOTS, unless the run has its hosts for itself."""
        of_host: dict[str, list[int]] = {}
        for slot in slots:
            of_host.setdefault(slot.host, []).append(slot.index)
        if all(len(indices) == self._hosts[name].slots for name, indices in of_host.items()):
            return {}
        parts = {name: f"{','.join(map(str, i))}/{self._hosts[name].slots}" for name, i in of_host.items()}
        if len(parts) == 1:
            return {SLOTS: next(iter(parts.values()))}
        return {SLOTS: ";".join(f"{name}={part}" for name, part in parts.items())}

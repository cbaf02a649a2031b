"""Watch the processes of ranks on all hosts, and send signals to them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from functools import partial

from cli.follow.guard import Guard, Guards
from cli.follow.poller import Poller
from cli.follow.state import Rank
from hvd_train.rank import events


class ProcessMonitor:
    """Watches processes: on this machine by pidfd, on each other host by a guard.

    `ended` receives the machine and pid of each process that ends, with pid 0 for a connection to a
    guard. `named` receives the machine of each guard that answers, and the name of its host.
    """

    def __init__(
        self, poller: Poller, guards: Guards, ended: Callable[[str, int], None], named: Callable[[str, str], None]
    ) -> None:
        self._poller = poller
        self._guards = guards
        self._ended = ended
        self._named = named
        self._watched: set[tuple[str, int, int]] = set()

    def watch(self, machine: str, pid: int, parent: int) -> None:
        """Watch the rank `pid` and, on another host, its `parent`: the launcher's daemon there."""
        if (machine, pid, parent) in self._watched:
            return
        self._watched.add((machine, pid, parent))
        if machine == events.machine():
            self._poller.add_process(pid, lambda: self._ended(machine, pid))
            return
        self._start_guards()
        self._guards.watch(machine, (parent, pid))  # if both end at once, the daemon is the cause

    def signal(self, number: int, ranks: Iterable[Rank]) -> set[str]:
        """Send a signal to `ranks`; return the machines that have no guard to send it."""
        by_machine: dict[str, list[int]] = {}
        for rank in ranks:
            by_machine.setdefault(rank.machine, []).append(rank.pid)
        for pid in by_machine.pop(events.machine(), []):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return {machine for machine, pids in by_machine.items() if not self._guards.signal(machine, number, pids)}

    @property
    def has_guards(self) -> bool:
        return bool(self._guards.started)

    def dismiss(self) -> None:
        """Have all guards end the processes that are left on their hosts."""
        self._guards.dismiss()

    def _start_guards(self) -> None:
        for guard in self._guards.start():
            self._listen(guard)

    def _listen(self, guard: Guard) -> None:
        assert guard.process.stdout is not None
        self._poller.add(guard.process.stdout, partial(self._receive, guard))

    def _receive(self, guard: Guard, data: bytes) -> None:
        had_answered = bool(guard.machine)
        ended = guard.receive(data)
        if guard.machine and not had_answered:
            self._named(guard.machine, guard.name)
        if not data and not had_answered and self._guards.restart(guard):
            self._listen(guard)
        if not data or not had_answered:
            self._start_guards()
        for pid in ended:
            self._ended(guard.machine, pid)

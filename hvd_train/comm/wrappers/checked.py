"""Compares the calls of ranks before each collective (`--check-collectives`).

A mismatch is an error instead of a hang. Each rank sends its call to all members of the group by
mailbox, and continues once all members have sent the same call. Messages between two ranks keep
their order, so a collective of one group that meets one of another group is found too. This is for
debugging, not for speed: a collective costs a message to each member, and `submit` runs tasks in
the caller's thread.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from types import FrameType

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator, SharedMemory, Work
from hvd_train.comm.connect import connect
from hvd_train.comm.messages import Mailbox
from hvd_train.comm.ops import Op
from hvd_train.comm.traffic import Traffic
from hvd_train.comm.wrappers.base import Wrapper
from hvd_train.errors import ExitCode
from hvd_train.text.frames import where

_CALL = "call"
_GRACE = 1.0
"""Seconds to wait for the other calls once two differ, to show which rank deviates."""
_COMM = os.path.dirname(os.path.dirname(__file__))


class Mismatch(Exception):
    """Ranks ask for different collectives. The text names ranks, collectives and lines of code."""

    exit_code = ExitCode.FAILURE


@dataclass(frozen=True)
class Call:
    """A rank's call `what`, the `number`-th of `group`, from the line `at` on `host`.

    An exchange goes to rank `to`.
    """

    what: str
    group: str
    number: int
    at: str
    host: str
    to: int

    def __str__(self) -> str:
        return f"{self.what}, number {self.number} of {self.group}, at {self.at}"

    @property
    def common(self) -> tuple[str, str, int]:
        """What must be equal on all members of the group."""
        return self.what, self.group, self.number


class _Calls:
    """Exchanges the calls of this rank and others, for all groups of the world."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox
        self._received: defaultdict[int, deque[Call]] = defaultdict(deque)

    def compare(self, own: Call, members: Sequence[int]) -> dict[int, Call]:
        """Return the calls of all `members`, by rank, once all have arrived.

        Mismatch if they differ.
        """
        rank = self.mailbox.rank
        for member in members:
            if member != rank:
                self.mailbox.send(member, _CALL, **asdict(own))
        calls = {rank: own}
        while len(calls) < len(members):
            arrived = [r for r in members if r not in calls and self._received[r]]
            for r in arrived:
                calls[r] = self._received[r].popleft()
            if not arrived and not self._receive(_GRACE if _differ(calls) else None):
                break
        if _differ(calls):
            raise Mismatch(_explained(calls))
        return calls

    def _receive(self, seconds: float | None) -> bool:
        message = self.mailbox.receive(seconds)
        if message is not None and message.kind == _CALL:
            self._received[message.source].append(Call(**message.values))
        return message is not None


class CheckedCommunicator(Wrapper):
    """`inner` with every collective checked.

    It is the group named `group` of the ranks `members` of the world.
    """

    def __init__(self, inner: Communicator, calls: _Calls, members: Sequence[int], group: str) -> None:
        super().__init__(inner)
        self._calls, self._members, self._group = calls, members, group
        self._number = 0
        if inner.shared_memory is not None:
            self.shared_memory = _CheckedMemory(inner.shared_memory, self)

    def all_reduce_async_(self, x: Tensor, op: Op = "mean") -> Work:
        self.check(f"all_reduce {op} of {_tensor(x)}")
        return super().all_reduce_async_(x, op)

    def reduce_scatter(self, x: Tensor, op: Op = "mean") -> Tensor:
        self.check(f"reduce_scatter {op} of {_tensor(x)}")
        return super().reduce_scatter(x, op)

    def all_gather(self, x: Tensor) -> list[Tensor]:
        self.check(f"all_gather of {_rows(x)}")
        return super().all_gather(x)

    def broadcast_(self, x: Tensor, root: int = 0) -> None:
        self.check(f"broadcast from {root} of {_tensor(x)}")
        super().broadcast_(x, root)

    def all_to_all(self, xs: Sequence[Tensor]) -> list[Tensor]:
        self.check(f"all_to_all of {_rows(xs[0])}" if xs else "all_to_all of nothing")
        return super().all_to_all(xs)

    def exchange(self, x: Tensor, dst: int, src: int) -> Tensor:
        calls = self.check(f"exchange of {_tensor(x)}", self._members[dst])
        source, rank = self._members[src], self._members[self.rank]
        if calls[source].to != rank:
            raise Mismatch(
                f"rank {rank} on {calls[rank].host} expects from rank {source} on {calls[source].host}, "
                f"which sends to rank {calls[source].to} (--check-collectives): {calls[source]}"
            )
        return super().exchange(x, dst, src)

    def barrier(self) -> None:
        self.check("barrier")
        super().barrier()

    def split(self, color: int, key: int = 0) -> Communicator:
        self.check("split")
        inner = self._inner.split(color, key)
        members = inner._lengths(self._members[self.rank])
        return CheckedCommunicator(inner, self._calls, members, f"split {self._number} of {self._group}")

    def mailbox(self) -> Mailbox:
        self.check("mailbox")
        return super().mailbox()

    def allocate(self, numel: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        self.check("allocate")
        return super().allocate(numel, dtype, device)

    def close(self) -> None:
        self.check("close")
        if self._group == _WORLD:
            self._calls.mailbox.close()
        super().close()

    def check(self, what: str, to: int = -1) -> dict[int, Call]:
        """Compare this rank's call `what` with those of all members.

        Return the calls by rank in the world.
        """
        self._number += 1
        at = where(_outside(sys._getframe()))
        own = Call(what, self._group, self._number, at, socket.gethostname(), to)
        return self._calls.compare(own, self._members)


class _CheckedMemory:
    """The shared memory of `comm`. Calls are checked if all ranks of `comm` share it."""

    def __init__(self, inner: SharedMemory, comm: CheckedCommunicator) -> None:
        self._inner, self._comm = inner, comm
        self.rank, self.size = inner.rank, inner.size

    def allocate(self, nbytes: int) -> list[Tensor]:
        self._check("allocation of shared memory")
        return self._inner.allocate(nbytes)

    def barrier(self) -> None:
        self._check("barrier of shared memory")
        self._inner.barrier()

    def _check(self, what: str) -> None:
        if self.size == self._comm.size:
            self._comm.check(what)


_WORLD = "the world"


def checked(comm: Communicator) -> Communicator:
    """Return the world `comm`, and all groups split from it, with collectives checked; collective.

    The messages of the check are not counted in `comm.traffic`.
    """
    return CheckedCommunicator(comm, _Calls(connect(comm, Traffic())), range(comm.size), _WORLD)


def _outside(frame: FrameType | None) -> FrameType | None:
    """Return the innermost call, from `frame` outwards, that is not in `hvd_train.comm`."""
    while frame is not None and frame.f_code.co_filename.startswith(_COMM):
        frame = frame.f_back
    return frame


def _tensor(x: Tensor) -> str:
    return f"{_dtype(x)} {list(x.shape)}"


def _rows(x: Tensor) -> str:
    """Describe a tensor that may have any number of rows."""
    return f"{_dtype(x)} [{', '.join(['*', *map(str, x.shape[1:])])}]"


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _differ(calls: dict[int, Call]) -> bool:
    return len({call.common for call in calls.values()}) > 1


def _explained(calls: dict[int, Call]) -> str:
    groups: defaultdict[tuple[str, str, int], list[int]] = defaultdict(list)
    for rank in sorted(calls):
        groups[calls[rank].common].append(rank)
    lines = (f"{_named(ranks, calls[ranks[0]].host)}: {calls[ranks[0]]}" for ranks in groups.values())
    return "\n".join(["ranks ask for different collectives (--check-collectives)", *lines])


def _named(ranks: Sequence[int], host: str) -> str:
    """Name the first of `ranks`, which is on `host`, and count the others."""
    others = f" and {len(ranks) - 1} more ({_listed(ranks[1:])})" if len(ranks) > 1 else ""
    return f"rank {ranks[0]} on {host}{others}"


def _listed(ranks: Iterable[int]) -> str:
    first = [str(rank) for rank in ranks]
    return ", ".join(first[:8] + ["..."] * (len(first) > 8))

"""Collectives that every rank first tells the others of: where ranks ask for different ones, that is an error and no hang.

A rank tells each other member of the group, by a mailbox, and goes on once all of them have asked for the same. Between any two
ranks messages keep their order, so that also a collective of one group that meets one of another group is seen. For finding
mistakes, not for speed: a collective costs a message to each member, and `submit` runs nothing beside the caller.
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

from hvd_train.comm._connect import connect
from hvd_train.comm._mailbox import Mailbox
from hvd_train.comm._wrapper import Wrapper
from hvd_train.comm.base import Communicator, Op, SharedMemory, Work
from hvd_train.errors import ExitCode
from hvd_train.heartbeat import where

_ASK = "ask"
_GRACE = 1.0
"""Seconds for the other ranks to ask too, once two are known to differ: the odd one out shows among many."""
_HERE = os.path.dirname(__file__)


class Mismatch(Exception):
    """Ranks ask for different collectives; its text says who asks for what, and where."""

    exit_code = ExitCode.FAILURE


@dataclass(frozen=True)
class Ask:
    """What a rank on `host` asks for from the line `at`: collective `number` of `group`. An exchange goes to rank `to`."""

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
        """What has to be the same on all members."""
        return self.what, self.group, self.number


class _Wire:
    """What this rank of the world and the others tell each other, for all of its groups."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox
        self._heard: defaultdict[int, deque[Ask]] = defaultdict(deque)

    def agree(self, mine: Ask, members: Sequence[int]) -> dict[int, Ask]:
        """What all `members` ask for, once that is the same; Mismatch where it is not."""
        rank = self.mailbox.rank
        for member in members:
            if member != rank:
                self.mailbox.send(member, _ASK, **asdict(mine))
        asked = {rank: mine}
        while len(asked) < len(members):
            heard = [r for r in members if r not in asked and self._heard[r]]
            for r in heard:
                asked[r] = self._heard[r].popleft()
            if not heard and not self._listen(_GRACE if _differ(asked) else None):
                break
        if _differ(asked):
            raise Mismatch(_explained(asked))
        return asked

    def _listen(self, seconds: float | None) -> bool:
        message = self.mailbox.receive(seconds)
        if message is not None and message.kind == _ASK:
            self._heard[message.source].append(Ask(**message.values))
        return message is not None


class CheckedCommunicator(Wrapper):
    """`inner`, of which the ranks `members` of the world take part and that `group` names."""

    def __init__(self, inner: Communicator, wire: _Wire, members: Sequence[int], group: str) -> None:
        super().__init__(inner)
        self._wire, self._members, self._group = wire, members, group
        self._asked = 0
        if inner.shared_memory is not None:
            self.shared_memory = _CheckedMemory(inner.shared_memory, self)

    def all_reduce_async_(self, x: Tensor, op: Op = "mean") -> Work:
        self.ask(f"all_reduce {op} of {_tensor(x)}")
        return super().all_reduce_async_(x, op)

    def reduce_scatter(self, x: Tensor, op: Op = "mean") -> Tensor:
        self.ask(f"reduce_scatter {op} of {_tensor(x)}")
        return super().reduce_scatter(x, op)

    def all_gather(self, x: Tensor) -> list[Tensor]:
        self.ask(f"all_gather of {_rows(x)}")
        return super().all_gather(x)

    def broadcast_(self, x: Tensor, root: int = 0) -> None:
        self.ask(f"broadcast from {root} of {_tensor(x)}")
        super().broadcast_(x, root)

    def all_to_all(self, xs: Sequence[Tensor]) -> list[Tensor]:
        self.ask(f"all_to_all of {_rows(xs[0])}" if xs else "all_to_all of nothing")
        return super().all_to_all(xs)

    def exchange(self, x: Tensor, dst: int, src: int) -> Tensor:
        asked = self.ask(f"exchange of {_tensor(x)}", self._members[dst])
        source, rank = self._members[src], self._members[self.rank]
        if asked[source].to != rank:
            raise Mismatch(
                f"rank {rank} on {asked[rank].host} expects from rank {source} on {asked[source].host}, "
                f"which sends to rank {asked[source].to} (--check-collectives): {asked[source]}"
            )
        return super().exchange(x, dst, src)

    def barrier(self) -> None:
        self.ask("barrier")
        super().barrier()

    def split(self, color: int, key: int = 0) -> Communicator:
        self.ask("split")
        inner = self._inner.split(color, key)
        members = [int(r) for r in inner.all_gather(torch.tensor(self._members[self.rank]))]
        return CheckedCommunicator(inner, self._wire, members, f"split {self._asked} of {self._group}")

    def allocate(self, numel: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        self.ask("allocate")
        return super().allocate(numel, dtype, device)

    def close(self) -> None:
        self.ask("close")
        if self._group == _WORLD:
            self._wire.mailbox.close()
        super().close()

    def ask(self, what: str, to: int = -1) -> dict[int, Ask]:
        """What all members ask for, by their rank in the world."""
        self._asked += 1
        at = where(_outside(sys._getframe()))
        mine = Ask(what, self._group, self._asked, at, socket.gethostname(), to)
        return self._wire.agree(mine, self._members)


class _CheckedMemory:
    """The shared memory of `comm`; checked where all of its ranks share it."""

    def __init__(self, inner: SharedMemory, comm: CheckedCommunicator) -> None:
        self._inner, self._comm = inner, comm
        self.rank, self.size = inner.rank, inner.size

    def allocate(self, nbytes: int) -> list[Tensor]:
        self._ask("allocation of shared memory")
        return self._inner.allocate(nbytes)

    def barrier(self) -> None:
        self._ask("barrier of shared memory")
        self._inner.barrier()

    def _ask(self, what: str) -> None:
        if self.size == self._comm.size:
            self._comm.ask(what)


_WORLD = "the world"


def checked(comm: Communicator) -> Communicator:
    """The world `comm`, and all that is split from it, checked; collective."""
    return CheckedCommunicator(comm, _Wire(connect(comm)), range(comm.size), _WORLD)


def _outside(frame: FrameType | None) -> FrameType | None:
    """The innermost call at or above `frame` that is not of an engine."""
    while frame is not None and os.path.dirname(frame.f_code.co_filename) == _HERE:
        frame = frame.f_back
    return frame


def _tensor(x: Tensor) -> str:
    return f"{_dtype(x)} {list(x.shape)}"


def _rows(x: Tensor) -> str:
    """Of any number of rows."""
    return f"{_dtype(x)} [{', '.join(['*', *map(str, x.shape[1:])])}]"


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _differ(asked: dict[int, Ask]) -> bool:
    return len({ask.common for ask in asked.values()}) > 1


def _explained(asked: dict[int, Ask]) -> str:
    groups: defaultdict[tuple[str, str, int], list[int]] = defaultdict(list)
    for rank in sorted(asked):
        groups[asked[rank].common].append(rank)
    lines = (f"{_named(ranks, asked[ranks[0]].host)}: {asked[ranks[0]]}" for ranks in groups.values())
    return "\n".join(["ranks ask for different collectives (--check-collectives)", *lines])


def _named(ranks: Sequence[int], host: str) -> str:
    """The first of `ranks`, which is on `host`, and how many others there are."""
    others = f" and {len(ranks) - 1} more ({_listed(ranks[1:])})" if len(ranks) > 1 else ""
    return f"rank {ranks[0]} on {host}{others}"


def _listed(ranks: Iterable[int]) -> str:
    first = [str(rank) for rank in ranks]
    return ", ".join(first[:8] + ["..."] * (len(first) > 8))

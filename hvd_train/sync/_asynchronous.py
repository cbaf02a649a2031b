"""What strategies have in common in which no rank waits for another one's step: how they end, and what becomes of the dead."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from hvd_train.comm._mailbox import Message
from hvd_train.comm.base import Communicator, gather_json
from hvd_train.comm.single import SingleCommunicator
from hvd_train.errors import UserError
from hvd_train.optimizer import ModelOptimizer, State
from hvd_train.sync._members import ENDED, FINISHED, LEFT, VALUE, Members
from hvd_train.sync.base import Context, OwnGradient, Share

FAILED = "failed"
"""A thread of this rank has, and tells the main one."""


class Fixed(ModelOptimizer):
    """All that is ever trained is trained from the first step on: ranks could not agree on when to begin."""

    def load_state(self, state: State) -> None:
        frozen = {self.names[p] for p in self._frozen}
        super().load_state({name: values for name, values in state.items() if name not in frozen})

    def _grow(self, parameters: list[nn.Parameter]) -> None:
        if parameters:
            raise UserError(
                f"model: '{self.names[parameters[0]]}' is unfrozen while training, which ranks that do not wait for one "
                "another cannot do together; train it from the start, or set sync.strategy: allreduce"
            )


class Asynchronous(OwnGradient):
    """Each rank trains in a world of its own; rank 0 alone evaluates and saves, and is always a worker.

    A worker that has finished waits until all have finished or died, and all leave after rank 0: until then nobody uses a
    collective, and where ranks have died nobody does after.
    """

    def __init__(self, context: Context, workers: int, vital: Mapping[int, str]) -> None:
        """The first `workers` ranks work; for `vital` see `Members`."""
        super().__init__(context)
        self._alone = SingleCommunicator()
        hosts: list[str] = gather_json(self.comm, socket.gethostname())
        self._book = partial(Members, hosts, range(workers), vital)
        self.members = self._book()
        self._error: BaseException | None = None

    @property
    def world(self) -> Communicator:
        return self._alone

    @property
    def stopped(self) -> bool:  # type: ignore[override]
        return self.members.stopped

    def share(self, epoch: int) -> Share | None:
        living = self.members.living
        return Share(living.index(self.comm.rank), len(living)) if self.comm.rank in living else None

    def end(self, reason: str) -> None:
        self._tell(ENDED, reason=reason)

    def ended(self) -> str | None:
        return self.members.reason

    def finish(self) -> bool | None:
        self._tell(FINISHED)
        self._wait(lambda: not self.members.working)
        return None

    def gather(self, value: Any) -> list[Any]:
        if self.comm.rank:
            self._mail.send(0, VALUE, value=value)
            return []
        self.members.values[0] = value
        self._wait(lambda: set(self.members.living) <= set(self.members.values))
        return [self.members.values.get(rank) for rank in range(self.comm.size)]

    def leave(self) -> None:
        self._tell(LEFT, lost=self.members.lost)
        self._wait(lambda: 0 in self.members.left)
        self.lost = self.members.agreed_lost
        self._close()

    def _tell(self, kind: str, **values: Any) -> None:
        """To all ranks, this one first."""
        self.members.hear(Message(self.comm.rank, kind, values))
        for rank in range(self.comm.size):
            if rank != self.comm.rank:
                self._mail.send(rank, kind, **values)

    def _connect(self) -> None:
        """Open the mailbox; collective. UserError where the engine has none."""
        self._mail = self.comm.mailbox()

    def _guarded(self, task: Callable[[], None]) -> None:
        """In a thread: the main one hears of its failure."""
        try:
            task()
        except BaseException as error:
            self._error = error
            self._failed()

    def _failed(self) -> None:
        self._mail.send(self.comm.rank, FAILED)

    def _from_mail(self) -> Message:
        message = self._mail.receive()
        assert message is not None, "it waits for ever"
        return message

    def _next(self) -> Message:
        """The next message to the main thread."""
        return self._checked(self._from_mail())

    def _checked(self, message: Message) -> Message:
        if message.kind == FAILED and self._error is not None:
            raise self._error
        return message

    def _receive(self) -> Message:
        """The next message that is not about members."""
        while self.members.hear(message := self._next()):
            pass
        return message

    def _wait(self, until: Callable[[], bool]) -> None:
        """For what members say of themselves."""
        while not until():
            self.members.hear(self._next())

    def _close(self) -> None:
        self._mail.close()

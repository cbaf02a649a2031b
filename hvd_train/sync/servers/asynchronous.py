"""Ranks that do not wait for one another: how they end a run, and how they survive a lost rank."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

from torch import nn

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.comm.messages import Mailbox, Message
from hvd_train.comm.objects import gather_json
from hvd_train.errors import UserError
from hvd_train.gradients.optimizer import ModelOptimizer, State
from hvd_train.sync.membership import Membership, Share, nothing
from hvd_train.sync.servers.roster import ENDED, FINISHED, LEFT, VALUE, Roster

FAILED = "failed"
"""A thread of this rank has failed."""


def refuse_unfreezing(names: Sequence[str]) -> None:
    """Raise UserError if there are `names` of unfrozen parameters: ranks cannot agree on the step."""
    if names:
        raise UserError(
            f"model: '{names[0]}' is unfrozen while training, which ranks that do not wait for one another cannot do "
            "together; train it from the start, or set sync.strategy: allreduce"
        )


class FixedOptimizer(ModelOptimizer):
    """Trains from the first step on all parameters that are ever trained.

    UserError if one is unfrozen later.
    """

    def load_state(self, state: State) -> None:
        frozen = {self.names[p] for p in self._frozen}
        super().load_state({name: values for name, values in state.items() if name not in frozen})

    def _grow(self, parameters: list[nn.Parameter]) -> None:
        refuse_unfreezing([self.names[p] for p in parameters])


def not_serving() -> bool:
    """Return False: this rank is a worker."""
    return False


def unchanged(values: list[Any]) -> list[Any]:
    return values


class AsynchronousGroup(Membership):
    """Each rank trains in a world of its own.

    Rank 0 alone evaluates and saves, and is always a worker. Ranks exchange messages and use no
    collective until all of them leave; if ranks have died, they use none after that either. A
    worker that has finished waits until all workers have finished or died. All ranks leave after
    rank 0.
    """

    def __init__(
        self,
        comm: Communicator,
        workers: int,
        vital: Mapping[int, str],
        *,
        description: str = "",
        queue: SimpleQueue[Message] | None = None,
        serve: Callable[[], bool] = not_serving,
        complete: Callable[[list[Any]], list[Any]] = unchanged,
        at_end: Callable[[], None] = nothing,
        on_close: Callable[[], None] = nothing,
    ) -> None:
        """The first `workers` ranks are workers; for `vital` see `Roster`. Collective.

        `queue` holds the main thread's messages if another thread receives them; otherwise the main
        thread reads the mailbox. `serve` is that of `Membership`, `description` its `roles`.
        `complete` fills in gathered values of ranks that are not workers. `at_end` runs when this
        rank begins to leave, `on_close` before the mailbox closes.
        """
        super().__init__(comm, at_end=at_end)
        self._world, self._queue = SingleCommunicator(), queue
        self._description, self._serve, self._complete = description, serve, complete
        self._on_close = on_close
        self._hosts: list[str] = gather_json(comm, socket.gethostname())
        self._workers, self._vital = range(workers), vital
        self._error: BaseException | None = None
        self.roster = self.new_roster()
        """What the main thread knows of all ranks."""

    def new_roster(self) -> Roster:
        """Return a record of all ranks for a thread of its own."""
        return Roster(self._hosts, self._workers, self._vital)

    @property
    def world(self) -> Communicator:
        return self._world

    @property
    def stopped(self) -> bool:
        return self.roster.stopped

    def share(self, epoch: int) -> Share | None:
        living = self.roster.living
        return Share(living.index(self.comm.rank), len(living)) if self.comm.rank in living else None

    def roles(self) -> str:
        return self._description or super().roles()

    def serve(self) -> bool:
        return self._serve()

    def end(self, reason: str) -> None:
        self.notify(ENDED, reason=reason)

    def ended(self) -> str | None:
        return self.roster.reason

    def gather(self, value: Any) -> list[Any]:
        if self.comm.rank:
            self.mail.send(0, VALUE, value=value)
            return []
        self.roster.values[0] = value
        self.wait(lambda: set(self.roster.living) <= set(self.roster.values))
        return self._complete([self.roster.values.get(rank) for rank in range(self.comm.size)])

    def leave(self) -> None:
        super().leave()
        self.notify(LEFT, lost=self.roster.lost)
        self.wait(lambda: 0 in self.roster.left)
        self.close(self.roster)

    def close(self, roster: Roster) -> None:
        """Close the mailbox; the lost ranks are those that `roster` has agreed on."""
        self.lost = roster.agreed_lost
        self._on_close()
        self.mail.close()

    def connect(self) -> None:
        """Open the mailbox; collective. UserError if the engine has no mailboxes."""
        self.mail: Mailbox = self.comm.mailbox()

    def finish(self) -> None:
        """Announce that this rank has taken its last step."""
        self.notify(FINISHED)

    def wait_for_all(self) -> None:
        """Wait until all workers have finished or died."""
        self.wait(lambda: not self.roster.working)

    def notify(self, kind: str, **values: Any) -> None:
        """Send a message to all ranks and record it on this rank."""
        self.roster.update(Message(self.comm.rank, kind, values))
        for rank in range(self.comm.size):
            if rank != self.comm.rank:
                self.mail.send(rank, kind, **values)

    def receive(self) -> Message:
        """Wait for the next message in the mailbox."""
        message = self.mail.receive()
        assert message is not None, "receive() without a timeout returns a message"
        return message

    def next(self) -> Message:
        """Wait for the next message to the main thread.

        Raises the error of a thread of this rank that has failed.
        """
        message = self._queue.get() if self._queue is not None else self.receive()
        if message.kind == FAILED and self._error is not None:
            raise self._error
        return message

    def next_reply(self) -> Message:
        """Wait for the next message that is not about the state of a rank."""
        while self.roster.update(message := self.next()):
            pass
        return message

    def wait(self, until: Callable[[], bool]) -> None:
        """Record messages until the roster makes `until` true."""
        while not until():
            self.roster.update(self.next())

    def guard(self, task: Callable[[], None]) -> None:
        """Run `task` in this thread; if it fails, the main thread raises its error."""
        try:
            task()
        except BaseException as error:
            self._error = error
            if self._queue is not None:
                self._queue.put(Message(self.comm.rank, FAILED))
            else:
                self.mail.send(self.comm.rank, FAILED)

"""A parameter server, which answers workers in the order of their requests (Li et al., OSDI'14).

Workers push gradients of the server's part of the parameters, and the server answers with fresh
values. Kinds of servers differ in when they apply a gradient and when they answer its worker.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hvd_train.comm.messages import LOST, Mailbox, Message
from hvd_train.state.packing import to_tensors
from hvd_train.sync.servers.roster import Roster
from hvd_train.sync.servers.shard import Shard

PUSH, PULL, PARAMETERS, STATE, REPORT = "push", "pull", "parameters", "state", "report"


@dataclass(frozen=True)
class Push:
    """A worker's gradient of parameters that the server sent at `version`.

    None if the worker skipped the step.
    """

    worker: int
    version: int
    rate: float
    samples: int
    unused: set[int]
    gradients: list[Tensor] | None


class Server(ABC):
    """Serves a shard until all workers of `roster` have left.

    It sleeps until a message comes or `timeout` ends.
    """

    def __init__(
        self,
        shard: Shard,
        requests: Mailbox,
        replies: Mailbox,
        roster: Roster,
        sent: Callable[[], int],
        lost: Callable[[int], None] | None = None,
    ) -> None:
        """`sent` returns the bytes that this rank has sent.

        `lost` is called with each worker that dies.
        """
        self.shard, self.roster = shard, roster
        self.version = 0
        """The number of gradients that have been applied."""
        self.staleness: Counter[int] = Counter()
        """The staleness of applied gradients: how many others were applied since the worker
        received its parameters."""
        self._requests, self._replies, self._lost = requests, replies, lost
        self._sent, self._control_bytes = sent, 0
        self._versions = dict.fromkeys(roster.workers, 0)
        """The version that each worker has."""

    def run(self) -> None:
        while self.roster.present:
            message = self._requests.receive(self.timeout())
            if message is not None:
                self._take(message)
            self.settle()

    @abstractmethod
    def push(self, push: Push) -> None:
        """Take a gradient; its worker waits for `answer`."""

    @abstractmethod
    def settle(self) -> None:
        """Apply and answer what is due; called after each message and after a timeout."""

    def timeout(self) -> float | None:
        """Return the seconds until `settle` has to be called even if no message comes.

        None if it does not.
        """
        return None

    def report(self) -> dict[str, Any]:
        """Return the server's figures for the run's summary, as JSON values."""
        sent = self._sent() - self._control_bytes
        return {"updates": self.version, "staleness": sorted(self.staleness.items()), "bytes_sent": sent}

    def apply(self, pushes: Sequence[Push], rate: float) -> None:
        """Make one update by the sum of the gradients of `pushes`; skipped steps do not count."""
        full = [push for push in pushes if push.gradients is not None]
        self.staleness.update(self.version - push.version for push in full)
        if full:
            total, *others = (push.gradients or [] for push in full)
            for gradients in others:
                for mine, theirs in zip(total, gradients, strict=True):
                    mine += theirs
            self.shard.step(total, set.intersection(*(push.unused for push in full)), rate)
        self.version += len(full)

    def answer(self, worker: int, **values: Any) -> None:
        """Send the present parameters to `worker`."""
        self._versions[worker] = self.version
        self._replies.send(worker, PARAMETERS, *self.shard.values, **values)

    def _take(self, message: Message) -> None:
        source, values = message.source, message.values
        if message.kind == PUSH:
            gradients = message.tensors if values["taken"] else None
            version = self._versions[source]
            self.push(Push(source, version, values["rate"], values["samples"], set(values["unused"]), gradients))
        elif message.kind in {PULL, STATE}:
            before = self._sent()
            self.answer(source) if message.kind == PULL else self._send_state(source)
            self._control_bytes += self._sent() - before
        elif message.kind == REPORT:
            self._replies.send(source, REPORT, report=self.report())
        else:
            self.roster.update(message)
            if message.kind == LOST and self._lost and source in self.roster.lost and 0 not in self.roster.left:
                self._lost(source)

    def _send_state(self, worker: int) -> None:
        tensors = to_tensors(self.shard.state(), STATE)
        self._replies.send(worker, STATE, *tensors.values(), names=list(tensors))

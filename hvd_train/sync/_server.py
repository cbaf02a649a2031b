"""A parameter server, which answers whoever comes (Li et al., OSDI'14).

Workers push the gradient of the server's part of the parameters, and are answered with fresh values. When a gradient is applied,
and when its worker is answered, is what servers differ in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hvd_train.comm._mailbox import LOST, Mailbox, Message
from hvd_train.packing import to_tensors
from hvd_train.sync._members import Members
from hvd_train.sync._shard import Shard

PUSH, PULL, PARAMETERS, STATE, REPORT = "push", "pull", "parameters", "state", "report"


@dataclass(frozen=True)
class Push:
    """A worker's gradient, of parameters that a server gave out at `version`; none where the worker skipped the step."""

    worker: int
    version: int
    rate: float
    samples: int
    unused: set[int]
    gradients: list[Tensor] | None


class Server(ABC):
    """Serves a shard to `members` until all workers have left: it sleeps until a message comes, or until `patience` ends.

    `sent` counts bytes, and `lost` is told of workers that die.
    """

    def __init__(
        self,
        shard: Shard,
        requests: Mailbox,
        replies: Mailbox,
        members: Members,
        sent: Callable[[], int],
        lost: Callable[[int], None] | None = None,
    ) -> None:
        self.shard, self.members = shard, members
        self.version = 0
        """Gradients that are in the parameters."""
        self.staleness: Counter[int] = Counter()
        """Of gradients applied, how many others came in between."""
        self._requests, self._replies, self._lost = requests, replies, lost
        self._sent, self._aside = sent, 0
        self._given = dict.fromkeys(members.workers, 0)

    def run(self) -> None:
        while self.members.present:
            message = self._requests.receive(self.patience())
            if message is not None:
                self._take(message)
            self.settle()

    @abstractmethod
    def push(self, push: Push) -> None:
        """A worker that now waits for `answer`."""

    @abstractmethod
    def settle(self) -> None:
        """After each message, and when patience has ended: apply and answer what is due."""

    def patience(self) -> float | None:
        """Seconds until something is due though nobody comes."""
        return None

    def report(self) -> dict[str, Any]:
        """What the run's summary is to know, of values that JSON can carry."""
        sent = self._sent() - self._aside
        return {"updates": self.version, "staleness": sorted(self.staleness.items()), "bytes_sent": sent}

    def apply(self, pushes: Sequence[Push], rate: float) -> None:
        """One update by the sum of gradients, of which skipped ones are no part."""
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
        """Give out the parameters as they are now."""
        self._given[worker] = self.version
        self._replies.send(worker, PARAMETERS, *self.shard.values, **values)

    def _take(self, message: Message) -> None:
        source, values = message.source, message.values
        if message.kind == PUSH:
            gradients = message.tensors if values["taken"] else None
            version = self._given[source]
            self.push(Push(source, version, values["rate"], values["samples"], set(values["unused"]), gradients))
        elif message.kind in {PULL, STATE}:
            before = self._sent()
            self.answer(source) if message.kind == PULL else self._tell_state(source)
            self._aside += self._sent() - before
        elif message.kind == REPORT:
            self._replies.send(source, REPORT, report=self.report())
        else:
            self.members.hear(message)
            if message.kind == LOST and self._lost and source in self.members.lost and 0 not in self.members.left:
                self._lost(source)

    def _tell_state(self, worker: int) -> None:
        tensors = to_tensors(self.shard.state(), STATE)
        self._replies.send(worker, STATE, *tensors.values(), names=list(tensors))

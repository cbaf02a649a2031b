"""Ranks average their parameters in random pairs while both go on computing; nobody waits for anybody."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.comm._mailbox import LOST, Message
from hvd_train.optimizer import Build, ModelOptimizer
from hvd_train.sync._asynchronous import FAILED, Asynchronous, Fixed
from hvd_train.sync._flat import FlatParameters, copy_
from hvd_train.sync._members import FINISHED, LEFT
from hvd_train.sync._replicas import drift, incompressible
from hvd_train.sync.base import Context

ASYNCHRONOUS = True
_MEET, _MET, _COLLECT, _REPLICA, _MERGED, _END = "meet", "met", "collect", "replica", "merged", "end"


class Replica:
    """Tensors that their own thread works on, and that others average with at any time: these see them as of `settle`.

    What one side of an average gains the other one loses, so the sum of all replicas stays, whatever is under way.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._own = tensors
        self._settled = [t.clone() for t in tensors]
        self._pending = [torch.zeros_like(t) for t in tensors]
        self._lock = threading.Lock()

    def settle(self) -> None:
        """Between two steps: take in what came meanwhile, and show the result."""
        with self._lock:
            for own, settled, pending in zip(self._own, self._settled, self._pending, strict=True):
                own += pending
                settled.copy_(own)
                pending.zero_()

    def values(self) -> list[Tensor]:
        with self._lock:
            return [s + p for s, p in zip(self._settled, self._pending, strict=True)]

    def meet(self, others: Sequence[Tensor]) -> list[Tensor]:
        """Become the mean of this and another replica; what the other one has to add for that."""
        with self._lock:
            changes = []
            for settled, pending, other in zip(self._settled, self._pending, others, strict=True):
                change = (other.to(settled.device) - settled - pending) / 2
                pending += change
                changes.append(-change)
            return changes

    def add(self, changes: Sequence[Tensor]) -> None:
        with self._lock:
            for pending, change in zip(self._pending, changes, strict=True):
                pending += change.to(pending.device)


class AsyncGossip(Asynchronous):
    """After a step, if its last average is done, a rank sends its replica to a random other one, whose mail thread averages
    and answers at once (AD-PSGD, Lian et al., arXiv 1710.06952). Since only those threads answer, no cycle of waiting can form.

    Evaluations and checkpoints see the mean of all replicas at that moment, and so does every rank at the end. A resumed run
    goes on from it, with the state of rank 0's optimizer.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context, context.comm.size, {0: "evaluates and saves"})
        if context.compresses:
            raise incompressible("async_gossip")
        self._random = random.Random(context.seed * 65537 + self.comm.rank)
        self._inbox: SimpleQueue[Message] = SimpleQueue()
        self._changed = threading.Condition()
        self._partner: int | None = None
        """Whose answer is still to come."""
        self._gone: set[int] = set()
        self._averages = 0
        self._drifts: list[float] = []
        self._merged = False

    def optimizer(self, model: nn.Module, build: Build) -> ModelOptimizer:
        self._connect()
        return Fixed(model, build)

    def start(self, model: nn.Module) -> None:
        super().start(model)
        self.flat = FlatParameters(model, self.world)
        self.replica = Replica(self.flat.tensors)
        self._thread = threading.Thread(target=self._guarded, args=(self._answer,), name="ddl-gossip", daemon=True)
        self._thread.start()

    @torch.no_grad()
    def on_parameters(self, step: int) -> None:
        self.replica.settle()
        while not self._inbox.empty():
            self.members.hear(self._next())
        with self._changed:
            others = [rank for rank in self.members.present if rank not in self._gone | {self.comm.rank}]
            if self._partner is not None or not others:
                return
            self._partner = self._random.choice(others)
        self._averages += 1
        self._mail.send(self._partner, _MEET, *self.replica.values())

    @contextmanager
    def agreed(self) -> Iterator[None]:
        if self._merged:
            yield
            return
        own = [t.clone() for t in self.flat.tensors]
        copy_(self.flat.tensors, self._mean())
        try:
            yield
        finally:
            copy_(self.flat.tensors, own)

    @torch.no_grad()
    def finish(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._partner is None)
        self._tell(FINISHED)
        copy_(self.flat.tensors, self._told() if self.comm.rank else self._merge())
        self._merged = True
        return True

    def summary(self) -> dict[str, Any]:
        mean = sum(self._drifts) / max(1, len(self._drifts))
        return {"averages": self._averages, "drift": mean, "lost": self.lost}

    def _merge(self) -> list[Tensor]:
        """Once all have finished, so that no average is under way, tell them the mean."""
        self._wait(lambda: not self.members.working)
        merged = self._mean()
        for rank in self.members.living[1:]:
            self._mail.send(rank, _MERGED, *merged)
        return merged

    @torch.no_grad()
    def _mean(self) -> list[Tensor]:
        """Of all living replicas; without waiting for anything but messages."""
        found = {self.comm.rank: self.replica.values()}
        asked = [rank for rank in self.members.living if rank != self.comm.rank]
        for rank in asked:
            self._mail.send(rank, _COLLECT)
        while not set(self.members.living) <= set(found):
            message = self._next()
            if not self.members.hear(message):
                found[message.source] = [
                    t.to(own.device) for t, own in zip(message.tensors, self.flat.tensors, strict=True)
                ]
        mean = [sum(tensors[1:], start=tensors[0]) / len(tensors) for tensors in zip(*found.values(), strict=True)]
        self._drifts.append(sum(float(drift(one, mean)) for one in found.values()) / len(found))
        return mean

    def _told(self) -> list[Tensor]:
        """The mean that rank 0 sends to all; what this rank has, where rank 0 has left before."""
        while 0 not in self.members.left:
            message = self._next()
            if not self.members.hear(message) and message.kind == _MERGED:
                return message.tensors
        return self.flat.tensors

    def _answer(self) -> None:
        """The mail thread: what concerns the replica at once, the rest to the main thread."""
        while True:
            message = self._from_mail()
            if message.kind == _MEET:
                self._mail.send(message.source, _MET, *self.replica.meet(message.tensors))
            elif message.kind == _MET:
                self.replica.add(message.tensors)
                self._free(message.source)
            elif message.kind == _COLLECT:
                self._mail.send(message.source, _REPLICA, *self.replica.values())
            elif message.kind == _END:
                return
            else:
                self._note(message)

    def _note(self, message: Message) -> None:
        if message.kind in {LOST, LEFT}:
            with self._changed:
                self._gone.add(message.source)
            self._free(message.source)
        if message.kind == LOST and self.comm.rank == 0 and message.source not in self.members.left:
            self.report(message.source)
        self._inbox.put(message)

    def _free(self, partner: int) -> None:
        with self._changed:
            if self._partner == partner:
                self._partner = None
                self._changed.notify_all()

    def _next(self) -> Message:
        return self._checked(self._inbox.get())

    def _failed(self) -> None:
        self._inbox.put(Message(self.comm.rank, FAILED))

    def _close(self) -> None:
        self._mail.send(self.comm.rank, _END)
        self._thread.join()
        super()._close()


def create(context: Context) -> AsyncGossip:
    return AsyncGossip(context)

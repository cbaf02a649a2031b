"""Ranks average their parameters in random pairs while both continue to compute.

No rank waits for another.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.comm.messages import LOST, Message
from hvd_train.gradients.optimizer import Build, ModelOptimizer
from hvd_train.sync.base import Context, SyncStrategy
from hvd_train.sync.replicas.consensus import relative_distance
from hvd_train.sync.replicas.flat import FlatParameters, copy_
from hvd_train.sync.replicas.replica_set import refuse_compression
from hvd_train.sync.scale import OwnMean
from hvd_train.sync.servers.asynchronous import AsynchronousGroup, FixedOptimizer
from hvd_train.sync.servers.roster import LEFT
from hvd_train.sync.view import View

ASYNCHRONOUS = True
_AVERAGE, _CHANGE, _COLLECT, _REPLICA, _MEAN, _END = "average", "change", "collect", "replica", "mean", "end"


class SharedReplica:
    """Tensors that one thread trains while other threads average them with other replicas.

    The other threads see the tensors as of the last `settle`. What one side of an average gains the
    other side loses, so that the sum of all replicas stays the same, whatever is in transit.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._own = tensors
        self._settled = [t.clone() for t in tensors]
        self._pending = [torch.zeros_like(t) for t in tensors]
        self._lock = threading.Lock()

    def settle(self) -> None:
        """Add the changes that have arrived to the tensors, and show the result to other threads.

        Called between two steps.
        """
        with self._lock:
            for own, settled, pending in zip(self._own, self._settled, self._pending, strict=True):
                own += pending
                settled.copy_(own)
                pending.zero_()

    def values(self) -> list[Tensor]:
        with self._lock:
            return [s + p for s, p in zip(self._settled, self._pending, strict=True)]

    def average(self, others: Sequence[Tensor]) -> list[Tensor]:
        """Become the mean of this and another replica.

        Return the change that makes the other replica the mean too.
        """
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


class GossipView(View):
    """Evaluations and checkpoints see the present mean of all replicas, which `collect` returns."""

    has_model_of_step = False

    def __init__(self, collect: Callable[[], list[Tensor]], lost: Callable[[], list[int]]) -> None:
        super().__init__()
        self._collect, self._lost = collect, lost
        self.merged = False
        """True once all replicas have become their mean."""
        self.averages = 0
        self.distances: list[float] = []
        """The mean relative distance of replicas to their mean, each time that they were
        collected."""

    def start(self, flat: FlatParameters) -> None:
        self._flat = flat

    @contextmanager
    def agreed(self) -> Iterator[None]:
        if self.merged:
            yield
            return
        own = [t.clone() for t in self._flat.tensors]
        copy_(self._flat.tensors, self._collect())
        try:
            yield
        finally:
            copy_(self._flat.tensors, own)

    def summary(self) -> dict[str, Any]:
        mean = sum(self.distances) / max(1, len(self.distances))
        return {"averages": self.averages, "drift": mean, "lost": self._lost()}


class AsyncGossip(SyncStrategy):
    """After a step, a rank sends its replica to a random other rank.

    It does not if its last average is still in transit. The mail thread of the other rank averages
    and answers at once (AD-PSGD, Lian et al., arXiv 1710.06952). Only mail threads answer, so that
    no cycle of waiting ranks can form.

    At the end every rank has the mean of all replicas. A resumed run starts from the saved mean,
    with the state of rank 0's optimizer.
    """

    def __init__(self, context: Context) -> None:
        comm = context.comm
        self._queue: SimpleQueue[Message] = SimpleQueue()
        vital = {0: "evaluates and saves"}
        self._group = AsynchronousGroup(comm, comm.size, vital, queue=self._queue, on_close=self._close)
        self._view = GossipView(self._collect_mean, lambda: self._group.lost)
        super().__init__(context, members=self._group, gradient_scale=OwnMean(comm), view=self._view)
        refuse_compression(context, "async_gossip")
        self._random = random.Random(context.seed * 65537 + comm.rank)
        self._report = context.report
        self._idle = threading.Condition()
        """Notified when an average completes; it guards the next two attributes."""
        self._partner: int | None = None
        """The rank whose answer this rank expects."""
        self._gone: set[int] = set()

    def optimizer(self, model: nn.Module, build: Build) -> ModelOptimizer:
        self._group.connect()
        return FixedOptimizer(model, build)

    def start(self, model: nn.Module) -> None:
        super().start(model)
        self.flat = FlatParameters(model, self.members.world)
        self._view.start(self.flat)
        self.replica = SharedReplica(self.flat.tensors)
        task = self._answer
        self._thread = threading.Thread(target=self._group.guard, args=(task,), name="ddl-gossip", daemon=True)
        self._thread.start()

    @torch.no_grad()
    def on_parameters(self, step: int) -> None:
        self.replica.settle()
        roster = self._group.roster
        while not self._queue.empty():
            roster.update(self._group.next())
        with self._idle:
            others = [rank for rank in roster.present if rank not in self._gone | {self.comm.rank}]
            if self._partner is not None or not others:
                return
            self._partner = self._random.choice(others)
        self._view.averages += 1
        self._group.mail.send(self._partner, _AVERAGE, *self.replica.values())

    @torch.no_grad()
    def finish(self) -> bool:
        with self._idle:
            self._idle.wait_for(lambda: self._partner is None)
        self._group.finish()
        copy_(self.flat.tensors, self._receive_mean() if self.comm.rank else self._send_mean())
        self._view.merged = True
        return True

    def _send_mean(self) -> list[Tensor]:
        """Return the mean of all replicas and send it to all ranks, once all have finished.

        No average is in transit then.
        """
        self._group.wait_for_all()
        mean = self._collect_mean()
        for rank in self._group.roster.living[1:]:
            self._group.mail.send(rank, _MEAN, *mean)
        return mean

    def _receive_mean(self) -> list[Tensor]:
        """Return the mean that rank 0 sends, or this rank's parameters if rank 0 leaves before."""
        while 0 not in self._group.roster.left:
            message = self._group.next()
            if not self._group.roster.update(message) and message.kind == _MEAN:
                return message.tensors
        return self.flat.tensors

    @torch.no_grad()
    def _collect_mean(self) -> list[Tensor]:
        """Return the mean of all living replicas. Waits for mail threads only."""
        group = self._group
        replicas = {self.comm.rank: self.replica.values()}
        for rank in group.roster.living:
            if rank != self.comm.rank:
                group.mail.send(rank, _COLLECT)
        while not set(group.roster.living) <= set(replicas):
            message = group.next()
            if not group.roster.update(message):
                tensors = zip(message.tensors, self.flat.tensors, strict=True)
                replicas[message.source] = [t.to(own.device) for t, own in tensors]
        mean = [sum(tensors[1:], start=tensors[0]) / len(tensors) for tensors in zip(*replicas.values(), strict=True)]
        self._view.distances.append(sum(float(relative_distance(r, mean)) for r in replicas.values()) / len(replicas))
        return mean

    def _answer(self) -> None:
        """Run the mail thread: answer messages about the replica, and queue all others."""
        mail = self._group.mail
        while True:
            message = self._group.receive()
            if message.kind == _AVERAGE:
                mail.send(message.source, _CHANGE, *self.replica.average(message.tensors))
            elif message.kind == _CHANGE:
                self.replica.add(message.tensors)
                self._release(message.source)
            elif message.kind == _COLLECT:
                mail.send(message.source, _REPLICA, *self.replica.values())
            elif message.kind == _END:
                return
            else:
                self._forward(message)

    def _forward(self, message: Message) -> None:
        if message.kind in {LOST, LEFT}:
            with self._idle:
                self._gone.add(message.source)
            self._release(message.source)
        if message.kind == LOST and self.comm.rank == 0 and message.source not in self._group.roster.left:
            self._report(message.source)
        self._queue.put(message)

    def _release(self, partner: int) -> None:
        """Stop waiting for `partner`."""
        with self._idle:
            if self._partner == partner:
                self._partner = None
                self._idle.notify_all()

    def _close(self) -> None:
        self._group.mail.send(self.comm.rank, _END)
        self._thread.join()


def create(context: Context) -> AsyncGossip:
    return AsyncGossip(context)

"""A rank that computes one stage of the model, and shares its layers with the other ranks of the stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.comm.base import Communicator
from hvd_train.data.base import Split
from hvd_train.execution import EVAL_BATCH, Check, Execution
from hvd_train.models.base import Link
from hvd_train.optimizer import ModelOptimizer
from hvd_train.parallel.layout import Layout, Mesh
from hvd_train.parallel.optimizer import PartOptimizer
from hvd_train.parallel.pieces import Pieces
from hvd_train.parallel.schedules import Schedule, bubble, one_forward_one_backward
from hvd_train.parallel.wire import Wire
from hvd_train.sync.base import named


@dataclass
class Tie:
    """Parameters that several stages have, and the ranks that have them: their gradients are to be added up."""

    comm: Communicator
    parameters: list[nn.Parameter]


@dataclass
class Stage(Execution):
    """Runs `links` on what the stage before sends, and sends the result on; gradients go the other way.

    The micro-batches of a step follow one another through the stages as `schedule` says.
    """

    links: Sequence[Link]
    mesh: Mesh
    pieces: Pieces
    schedule: Schedule
    micro_batches: int
    ties: Sequence[Tie] = ()
    _live: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Inputs and outputs of the micro-batches that have come forward, and not yet back."""

    def __post_init__(self) -> None:
        self._stage, self._stages = self.mesh.place.stage, self.mesh.layout.pipeline
        self._first, self._last = self._stage == 0, self._stage == self._stages - 1
        self.reports = self._last and self.mesh.place.tensor == 0

    @property
    def bytes_sent(self) -> int:
        comms = {self.mesh.pipeline, self.mesh.tensor, *(tie.comm for tie in self.ties)}
        return sum(comm.bytes_sent for comm in comms)

    def gradients(
        self, batches: Sequence[Tensor], divisor: float, before_last: Callable[[], None], check: Check
    ) -> float:
        total = 0.0
        for kind, i in self.schedule(self._stage, self._stages, len(batches)):
            if kind == "forward":
                total += self._forward(batches[i], i, divisor, check)
                continue
            if i == len(batches) - 1:
                before_last()
            self._backward(i)
        return total

    def sums(self, split: Split, indices: Tensor) -> tuple[float, float]:
        """What comes back here is a word only, that there is room for one more: no stage runs far ahead of the next."""
        loss = right = 0.0
        chunks = indices.split(EVAL_BATCH) if len(indices) else ()
        for kind, i in one_forward_one_backward(self._stage, self._stages, len(chunks)):
            self.clock.enter("eval")
            if kind == "backward":
                self._return(torch.empty(0)) if self._last else self._return(self._wire.receive(self._stage + 1))
                continue
            x, y = self.fetch(split, chunks[i])
            outputs = self._run(x if self._first else self._received(self._stage - 1))
            if not self._last:
                self._wire.send(outputs, self._stage + 1)
                continue
            with self.precision.forward():
                more = self.judged(outputs, y)
            loss, right = loss + more[0], right + more[1]
        return loss, right

    def open(self) -> None:
        if self._stages > 1:
            self._wire = Wire(self.mesh.pipeline)

    def joined(self, optimizer: ModelOptimizer) -> ModelOptimizer:
        return PartOptimizer(optimizer, self.pieces, self.mesh)

    def complete(self) -> None:
        with torch.no_grad(), self.clock("comm"):
            for tie in self.ties:
                for p in tie.parameters:
                    if p.grad is not None:
                        tie.comm.all_reduce_(p.grad, "sum")

    def roles(self, ranks: str) -> str:
        return roles(self.mesh.layout, self.micro_batches)

    def state(self) -> dict[str, Any]:
        return self.pieces.gather(super().state())

    def load_state(self, state: dict[str, Any]) -> None:
        self.pieces.check(state)
        super().load_state(self.pieces.mine(state, list(self.model.state_dict())))

    def close(self) -> None:
        if self._stages > 1:
            self._wire.close()

    def _forward(self, indices: Tensor, i: int, divisor: float, check: Check) -> float:
        """The loss of micro-batch `i`, where this is the last stage."""
        with self.clock("data"):
            x, y = self.fetch(self.data.train, indices)
        if not self._first:
            with self.clock("comm"):
                x = self._received(self._stage - 1).requires_grad_()
        with self.clock("forward"):
            outputs = self._run(x)
        self._live[i] = x, outputs
        if not self._last:
            with self.clock("comm"):
                self._wire.send(outputs, self._stage + 1)
            return 0.0
        with self.clock("forward"), self.precision.forward():
            loss = self.loss(outputs, y)
        self._live[i] = x, self.precision.scaler.scale(loss / divisor)
        return check(float(loss.detach()), i + 1)

    def _backward(self, i: int) -> None:
        x, outputs = self._live.pop(i)
        gradient = None
        if not self._last:
            with self.clock("comm"):
                gradient = self._received(self._stage + 1)
        with self.clock("backward"):
            torch.autograd.backward(outputs, gradient)
        with self.clock("comm"):
            self._return(torch.zeros_like(x) if x.grad is None else x.grad)

    def _run(self, x: Tensor) -> Tensor:
        with self.precision.forward():
            for link in self.links:
                x = link.run(x)
        return x

    def _received(self, stage: int) -> Tensor:
        return self._wire.receive(stage).to(self.precision.device)

    def _return(self, x: Tensor) -> None:
        if not self._first:
            self._wire.send(x, self._stage - 1)


def roles(layout: Layout, micro_batches: int) -> str:
    """Which ranks do what, and how much of a step stages are idle."""
    ranks = layout.pipeline * layout.tensor * layout.data
    stages = [f"stage {s + 1} on {named(layout.ranks(0, s))}" for s in range(layout.pipeline)]
    copies = f"{layout.data} copies of the model; in the first, " if layout.data > 1 else ""
    idle = f"; stages idle for {bubble(layout.pipeline, micro_batches):.0%} of a step" if layout.pipeline > 1 else ""
    return f"{ranks} ranks: {copies}{', '.join(stages)}{idle}"

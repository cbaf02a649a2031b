"""The execution of one stage of a pipeline, whose layers the ranks of the stage may share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.compute.calling import caller
from hvd_train.compute.execution import Check, Execution, Observe, largest_batch
from hvd_train.compute.loss import Sums, add, sums
from hvd_train.compute.loss import total as loss_total
from hvd_train.compute.parallel.channel import Channel
from hvd_train.compute.parallel.layout import Layout, Mesh
from hvd_train.compute.parallel.optimizer import PartOptimizer
from hvd_train.compute.parallel.schedules import Schedule, bubble, one_forward_one_backward
from hvd_train.compute.parallel.whole_state import WholeState
from hvd_train.data.base import Split
from hvd_train.data.batch import Batch
from hvd_train.data.nesting import map_tensors, tensors
from hvd_train.gradients.optimizer import ModelOptimizer
from hvd_train.models.base import Layer
from hvd_train.sync.membership import ranks_in_words


@dataclass
class Tie:
    """Parameters that several stages have.

    Their gradients are summed over `comm`, one rank of each of these stages.
    """

    comm: Communicator
    parameters: list[nn.Parameter]


@dataclass
class Stage(Execution):
    """Runs `layers` on the output of the previous stage and sends the result to the next one.

    Gradients go the other way. `schedule` gives the order of the micro-batches of a step.
    """

    layers: Sequence[Layer]
    mesh: Mesh
    whole_state: WholeState
    schedule: Schedule
    micro_batches: int
    ties: Sequence[Tie] = ()
    _in_flight: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    """Inputs and outputs of the micro-batches between their forward and their backward pass."""

    def __post_init__(self) -> None:
        self._stage, self._stages = self.mesh.position.stage, self.mesh.layout.pipeline
        self._is_first, self._is_last = self._stage == 0, self._stage == self._stages - 1
        self.reports = self._is_last and self.mesh.position.tensor == 0
        self._call = caller(self.layers[0].run)

    def gradients(
        self, batches: Sequence[Batch], divisor: float, before_last: Callable[[], None], check: Check
    ) -> Sums:
        total: Sums = {}
        for kind, i in self.schedule(self._stage, self._stages, len(batches)):
            if kind == "forward":
                total = add(total, self._forward(batches, i, divisor, check))
                continue
            if i == len(batches) - 1:
                before_last()
            self._backward(i)
        return total

    def evaluate(self, split: Split, indices: Tensor, observe: Observe, size: int | None = None) -> None:
        """Run an evaluation as a pipeline.

        A backward action returns an empty tensor, which allows the previous stage to send one more
        batch. So no stage runs far ahead of the next.
        """
        size = size or largest_batch(self.data.spec)
        batches, number = self.loaded(split, indices, size), -(-len(indices) // size)
        for kind, _ in one_forward_one_backward(self._stage, self._stages, number):
            self.clock.enter("eval")
            if kind == "backward":
                self._send_back([] if self._is_last else self._channel.receive(self._stage + 1))
                continue
            self._evaluate(next(batches), observe)

    def open(self) -> None:
        if self._stages > 1:
            self._channel = Channel(self.mesh.pipeline)

    def whole_optimizer(self, optimizer: ModelOptimizer) -> ModelOptimizer:
        return PartOptimizer(optimizer, self.whole_state, self.mesh)

    def complete_gradients(self) -> None:
        with torch.no_grad(), self.clock("comm"):
            for tie in self.ties:
                for p in tie.parameters:
                    if p.grad is not None:
                        tie.comm.all_reduce_(p.grad, "sum")

    def roles(self, ranks: str) -> str:
        return roles(self.mesh.layout, self.micro_batches)

    def state(self) -> dict[str, Any]:
        return self.whole_state.named(self.whole_state.gather(super().state()))

    def load_state(self, state: dict[str, Any]) -> None:
        self.whole_state.check(state)
        super().load_state(self.whole_state.part(state, list(self.model.state_dict())))

    def close(self) -> None:
        if self._stages > 1:
            self._channel.close()

    def _forward(self, batches: Sequence[Batch], i: int, divisor: float, check: Check) -> Sums:
        """Run the forward pass of micro-batch `i`.

        Return its losses if this is the last stage.
        """
        with self.clock("data"):
            batch = batches[i]
        x = batch.inputs
        if not self._is_first:
            with self.clock("comm"):
                x = map_tensors(_tracked, self._receive(self._stage - 1))
        with self.clock("forward"):
            outputs = self._run(x)
        self._in_flight[i] = x, outputs
        if not self._is_last:
            with self.clock("comm"):
                self._channel.send(outputs, self._stage + 1)
            return {}
        with self.clock("forward"), self.precision.forward():
            losses = self.loss(outputs, batch)
        self._in_flight[i] = x, self.precision.scaler.scale(loss_total(losses) / divisor)
        return check(sums(losses), i + 1)

    def _backward(self, i: int) -> None:
        x, outputs = self._in_flight.pop(i)
        roots, gradients = [y for y in tensors(outputs) if y.requires_grad], None
        if not self._is_last:
            with self.clock("comm"):
                gradients = tensors(self._receive(self._stage + 1))
        with self.clock("backward"):
            torch.autograd.backward(roots, gradients)
        if not self._is_first:
            with self.clock("comm"):
                self._send_back(
                    [torch.zeros_like(y) if y.grad is None else y.grad for y in tensors(x) if y.requires_grad]
                )

    def _evaluate(self, batch: Batch | None, observe: Observe) -> None:
        """Run one batch of an evaluation."""
        if batch is None:
            return
        outputs = self._run(batch.inputs if self._is_first else self._receive(self._stage - 1))
        if not self._is_last:
            self._channel.send(outputs, self._stage + 1)
        elif self.reports:
            with self.precision.forward():
                observe(outputs, batch)

    def _run(self, x: Any) -> Any:
        with self.precision.forward():
            x = self._call(x) if self._is_first else self.layers[0].run(x)
            for layer in self.layers[1:]:
                x = layer.run(x)
        return x

    def _receive(self, stage: int) -> Any:
        return map_tensors(self.precision.place, self._channel.receive(stage))

    def _send_back(self, x: Any) -> None:
        if not self._is_first:
            self._channel.send(x, self._stage - 1)


def _tracked(x: Tensor) -> Tensor:
    """Let autograd compute the gradient of an activation that a stage has received."""
    return x.requires_grad_() if x.is_floating_point() or x.is_complex() else x


def roles(layout: Layout, micro_batches: int) -> str:
    """Describe which ranks have which stage, and how long stages are idle."""
    ranks = layout.pipeline * layout.tensor * layout.data
    stages = [f"stage {s + 1} on {ranks_in_words(layout.ranks(0, s))}" for s in range(layout.pipeline)]
    copies = f"{layout.data} copies of the model; in the first, " if layout.data > 1 else ""
    idle = f"; stages idle for {bubble(layout.pipeline, micro_batches):.0%} of a step" if layout.pipeline > 1 else ""
    return f"{ranks} ranks: {copies}{', '.join(stages)}{idle}"

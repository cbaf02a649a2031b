"""How a rank computes: the gradients of its micro-batches, and sums over held-out samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hvd_train.compute.calling import caller
from hvd_train.compute.clock import Clock
from hvd_train.compute.loss import Loss, Sums, add, sums
from hvd_train.compute.loss import total as loss_total
from hvd_train.compute.precision import Precision
from hvd_train.data.base import Dataset, Split
from hvd_train.data.batch import Batch, divide
from hvd_train.data.loading.loader import Loader
from hvd_train.data.nesting import map_tensors
from hvd_train.data.spec import DataSpec
from hvd_train.gradients.optimizer import ModelOptimizer

EVAL_BATCH = 256
"""Samples in a forward pass of an evaluation."""
RANKED_SCORES = 2**24
"""The largest number of scores of items in such a pass, 64 MiB in float32."""

Check = Callable[[Sums, int], Sums]
"""Takes the losses of a micro-batch and its number, from 1.

Returns the losses, or raises if one is not finite.
"""

Observe = Callable[[Any, Batch], None]
"""Takes the outputs and the batch of a part of an evaluation."""


def largest_batch(spec: DataSpec) -> int:
    """Return the samples in a forward pass of an evaluation: fewer where each has many scores."""
    return min(EVAL_BATCH, max(1, RANKED_SCORES // spec.outputs)) if spec.task == "ranking" else EVAL_BATCH


@dataclass
class Execution(ABC):
    """Computes this rank's part of `model`."""

    model: nn.Module
    loss: Loss
    data: Dataset
    precision: Precision
    clock: Clock
    label: str | None
    """The key of the targets in samples that are dicts; None: the usual ones (`batch.LABELS`)."""
    loader: Loader
    """Makes the batches of training and of evaluations."""

    reports = True
    """True if this rank's losses and counts are added to those of other ranks.

    So on exactly one rank of each model copy.
    """

    def open(self) -> None:  # noqa: B027
        """Prepare for the first step; collective."""

    @abstractmethod
    def gradients(
        self, batches: Sequence[Batch], divisor: float, before_last: Callable[[], None], check: Check
    ) -> Sums:
        """Add the gradient of the sum of losses over `divisor` to the gradients.

        Return the sums of losses. `batches` are the micro-batches; each is loaded when it is read.
        `before_last` is called before the backward pass of the last one. The result is zero if this
        rank does not report.
        """

    @abstractmethod
    def evaluate(self, split: Split, indices: Tensor, observe: Observe, size: int | None = None) -> None:
        """Call `observe` with outputs for the samples at `indices`, a batch of `size` at a time.

        Without `size`, it is `largest_batch`.

        It is not called if this rank does not report.
        """

    def whole_optimizer(self, optimizer: ModelOptimizer) -> ModelOptimizer:
        """Return the optimizer of the whole model, given the one of this rank's part."""
        return optimizer

    def complete_gradients(self) -> None:  # noqa: B027
        """Complete the gradients that the strategy has reduced, before they are clipped."""

    def roles(self, ranks: str) -> str:
        """Describe which ranks do what; `ranks` describes the model copies."""
        return ranks

    def state(self) -> dict[str, Any]:
        """Return the whole model's parameters, buffers and extra state by name, on rank 0 at least.

        The call is collective.
        """
        return {n: v.detach().clone() if isinstance(v, Tensor) else v for n, v in self.model.state_dict().items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Load what `state` returned; RuntimeError if it is of another model."""
        self.model.load_state_dict(state)

    def close(self) -> None:  # noqa: B027
        """Release what `open` acquired, at the regular end of a run."""

    def prepare(self, whole: Any, positions: Tensor | None = None) -> Batch:
        """Return the batch `whole` of `positions` on the device, divided into inputs and targets."""
        moved = whole if self.precision.device.type == "cpu" else map_tensors(self.precision.place, whole)
        batch = divide(moved, self.label, keep_targets=self.loss.in_model)
        return Batch(map_tensors(self.precision.inputs, batch.inputs), batch.targets, batch.whole, positions)

    def loaded(self, split: Split, indices: Tensor, size: int) -> Iterator[Batch | None]:
        """Yield the samples at `indices` on the device, in batches of `size`.

        A batch is None if all of its samples are damaged.
        """
        plan = indices.split(size) if len(indices) else ()
        made = zip(plan, self.loader.load(split, plan), strict=False)
        return (whole if whole is None else self.prepare(whole, positions) for positions, whole in made)


@dataclass
class WholeModel(Execution):
    """Computes all of the model on this rank."""

    def __post_init__(self) -> None:
        self._call = caller(self.model)

    def gradients(
        self, batches: Sequence[Batch], divisor: float, before_last: Callable[[], None], check: Check
    ) -> Sums:
        total: Sums = {}
        for number in range(1, len(batches) + 1):
            with self.clock("data"):
                batch = batches[number - 1]
            with self.clock("forward"), self.precision.forward():
                losses = self.loss(self._call(batch.inputs), batch)
            total = add(total, check(sums(losses), number))
            if number == len(batches):
                before_last()
            with self.clock("backward"):
                scaled = self.precision.scaler.scale(loss_total(losses) / divisor)
                scaled.backward()  # type: ignore[no-untyped-call]
        return total

    def evaluate(self, split: Split, indices: Tensor, observe: Observe, size: int | None = None) -> None:
        for batch in self.loaded(split, indices, size or largest_batch(self.data.spec)):
            self.clock.enter("eval")
            if batch is None:
                continue
            with self.precision.forward():
                observe(self._call(batch.inputs), batch)

"""How a rank computes: the gradients of its micro-batches, and sums over held-out samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hvd_train.clock import Clock
from hvd_train.data.base import Dataset, Split
from hvd_train.loss import Loss, correct
from hvd_train.optimizer import ModelOptimizer
from hvd_train.precision import Precision

EVAL_BATCH = 256

Check = Callable[[float, int], float]
"""Is told the loss of a micro-batch and its number, from 1, and returns the loss; raises where that is no number."""


@dataclass
class Execution(ABC):
    """One rank's share of computing `model`; the trainer decides what on, and what comes of it."""

    model: nn.Module
    loss: Loss
    data: Dataset
    precision: Precision
    clock: Clock

    reports = True
    """This rank's losses and counts are to be added to those of others; exactly one rank of each copy of the model says so."""

    @property
    def bytes_sent(self) -> int:
        """What computing took between ranks, evaluations included."""
        return 0

    def open(self) -> None:  # noqa: B027
        """Before the first step; collective."""

    @abstractmethod
    def gradients(
        self, batches: Sequence[Tensor], divisor: float, before_last: Callable[[], None], check: Check
    ) -> float:
        """Add to the gradients those of the sum of losses over `divisor`; return that sum, where this rank reports.

        `batches` are positions of training samples. `before_last` is called before the backward pass of the last of them.
        """

    @abstractmethod
    def sums(self, split: Split, indices: Tensor) -> tuple[float, float]:
        """The sums over samples of the losses, and of the shares that are right; zero where this rank does not report."""

    def joined(self, optimizer: ModelOptimizer) -> ModelOptimizer:
        """What updates the whole model, where `optimizer` updates what of it this rank has."""
        return optimizer

    def complete(self) -> None:  # noqa: B027
        """After the strategy has reduced the gradients, before they are clipped."""

    def roles(self, ranks: str) -> str:
        """Which ranks do what, where `ranks` says so of the copies of the model."""
        return ranks

    def state(self) -> dict[str, Any]:
        """The whole model's parameters, buffers and extra state by name, on rank 0 at least; collective."""
        return {n: v.detach().clone() if isinstance(v, Tensor) else v for n, v in self.model.state_dict().items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned; RuntimeError where it is of another model."""
        self.model.load_state_dict(state)

    def close(self) -> None:  # noqa: B027
        """The last call of a run that has come to its end."""

    def fetch(self, split: Split, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets on the device."""
        x, y = split.batch(indices)
        return self.precision.inputs(x), y.to(self.precision.device)

    def judged(self, outputs: Tensor, targets: Tensor) -> tuple[float, float]:
        """The sums over a batch that `sums` adds up."""
        right = 0.0 if self.data.spec.task == "regression" else float(correct(outputs, targets))
        return float(self.loss(outputs, targets)), right


class WholeModel(Execution):
    """The rank computes all of the model by itself."""

    def gradients(
        self, batches: Sequence[Tensor], divisor: float, before_last: Callable[[], None], check: Check
    ) -> float:
        total = 0.0
        for number, indices in enumerate(batches, 1):
            with self.clock("data"):
                x, y = self.fetch(self.data.train, indices)
            with self.clock("forward"), self.precision.forward():
                loss = self.loss(self.model(x), y)
            total += check(float(loss.detach()), number)
            if number == len(batches):
                before_last()
            with self.clock("backward"):
                self.precision.scaler.scale(loss / divisor).backward()  # type: ignore[no-untyped-call]
        return total

    def sums(self, split: Split, indices: Tensor) -> tuple[float, float]:
        loss = right = 0.0
        for chunk in indices.split(EVAL_BATCH) if len(indices) else []:
            self.clock.enter("eval")
            x, y = self.fetch(split, chunk)
            with self.precision.forward():
                more = self.judged(self.model(x), y)
            loss, right = loss + more[0], right + more[1]
        return loss, right

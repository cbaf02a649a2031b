"""The contract of a training step in the bench.

A variant is a file in `implementations` whose `create(world, task)` returns a `Stepper`. `ddl bench
step` and `ddl bench scaling` time it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvd_train.bench.base import Variant
from hvd_train.bench.workloads import OPTIMIZERS, WORKLOADS, Workload
from hvd_train.config import plugins

if TYPE_CHECKING:
    from hvd_train.bench.world import World

IMPLEMENTATIONS = "hvd_train.bench.step.implementations"
CHECKED_STEPS = 3
TOLERANCE = 0.02
"""Largest error of the parameters, relative to the distance that they moved. 1e-5 is usual;
without communication it is 0.6 or more. One ReLU that rounding pushed across its kink gave 0.003
(mlp AdamW, np=8; in float64 the same run agreed to all digits shown)."""


@dataclass(frozen=True)
class Task:
    """A workload and an optimizer.

    Every variant gets the same initial model and, on the same rank, the same batch.
    """

    workload: Workload
    optimizer_name: str

    @property
    def optimizer_class(self) -> type[torch.optim.Optimizer]:
        cls: type[torch.optim.Optimizer] = getattr(torch.optim, self.optimizer_name)
        return cls

    @property
    def optimizer_options(self) -> dict[str, Any]:
        return OPTIMIZERS[self.optimizer_name]

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        model: nn.Module = plugins.create(
            "hvd_train.models.zoo", self.workload.model, self.workload.spec, **self.workload.options
        )
        return model

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return self.optimizer_class(parameters, **self.optimizer_options)  # type: ignore[arg-type]

    def batch(self, rank: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(rank + 1)
        spec, batch = self.workload.spec, self.workload.batch
        if spec.task == "language":
            tokens = torch.randint(spec.outputs, (2, batch, *spec.input_shape))
            return tokens[0], tokens[1]
        return torch.randn(batch, *spec.input_shape), torch.randint(spec.outputs, (batch,))


class Stepper(Variant):
    """A variant whose `run` is one step on the mean gradient of all ranks.

    This class steps on the rank's own gradient.
    """

    communicates: bool = True
    forward: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer

    def __init__(self, task: Task, batch: tuple[Tensor, Tensor]) -> None:
        self.x, self.y = batch
        self.model = self.forward = task.model()
        self.optimizer = task.optimizer(self.model.parameters())

    def run(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()  # type: ignore[no-untyped-call]
        self.average()
        self.optimizer.step()

    def loss(self) -> Tensor:
        return F.cross_entropy(self.forward(self.x).flatten(0, -2), self.y.flatten())

    def average(self) -> None:
        """Replace each `p.grad` with its mean over ranks, unless `forward` or `optimizer` does so."""

    def facts(self) -> dict[str, Any]:
        state = [t for values in self.optimizer.state.values() for t in values.values() if isinstance(t, Tensor)]
        return {"samples": len(self.x), "state_bytes": sum(t.numel() * t.element_size() for t in state)}


class StepCase:
    """Steps of `task`. The reference is one process that trains on the batches of all ranks."""

    def __init__(self, name: str, task: Task, world: World) -> None:
        self._name, self._task = name, task
        inputs, targets = zip(*map(task.batch, range(world.size)), strict=True)
        reference = Stepper(task, (torch.cat(inputs), torch.cat(targets)))
        self._start = _vector(reference.model)
        _repeat(reference)
        self._end = _vector(reference.model)

    def __str__(self) -> str:
        return self._name

    def create(self, name: str, world: World) -> Stepper:
        stepper: Stepper = plugins.create(IMPLEMENTATIONS, name, world, self._task)
        return stepper

    def check(self, variant: Stepper, world: World) -> str | None:
        _repeat(variant)
        error = float((_vector(variant.model) - self._end).norm() / (self._end - self._start).norm())
        if not variant.communicates or error <= TOLERANCE:
            return None
        return f"after {CHECKED_STEPS} steps the parameters differ from those of one process by {error:.2%} of their change"


def case(name: str, world: World) -> StepCase:
    """Return the case `name`: a workload and an optimizer, separated by a space."""
    workload, optimizer = name.split()
    return StepCase(name, Task(WORKLOADS[workload], optimizer), world)


def _repeat(stepper: Stepper) -> None:
    for _ in range(CHECKED_STEPS):
        stepper.run()


def _vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])

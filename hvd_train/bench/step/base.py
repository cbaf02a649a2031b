"""The contract of a training step in the bench.

A member is a file in this package whose `create(world, task)` returns a `Stepper`; `ddl bench step` and `scaling` find it there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hvd_train import plugins
from hvd_train.bench.base import Variant
from hvd_train.bench.workloads import OPTIMIZERS, WORKLOADS, Workload
from hvd_train.loss import cross_entropy

if TYPE_CHECKING:
    from hvd_train.bench.world import World

CHECKED_STEPS = 3
TOLERANCE = 0.02
"""Of the way that the parameters have come: 1e-5 is usual, no communication makes 0.6 and more, and one ReLU that rounding
puts on the other side of its kink made 0.003 (mlp AdamW, np=8; in float64 the same run agreed to all digits shown)."""


@dataclass(frozen=True)
class Task:
    """A workload and an optimizer: the same model and, on a rank of the same number, the same batch each time."""

    workload: Workload
    optimizer_name: str

    @property
    def optimizer_class(self) -> type[torch.optim.Optimizer]:
        found: type[torch.optim.Optimizer] = getattr(torch.optim, self.optimizer_name)
        return found

    @property
    def optimizer_options(self) -> dict[str, Any]:
        return OPTIMIZERS[self.optimizer_name]

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        model: nn.Module = plugins.create(
            "hvd_train.models", self.workload.model, self.workload.spec, **self.workload.options
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
    """`run` is one step on the mean gradient of all ranks; here without `average`, on a rank's own."""

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
        return cross_entropy(self.forward(self.x), self.y) / len(self.x)

    def average(self) -> None:
        """Let `p.grad` be the mean over ranks, where neither `forward` nor `optimizer` sees to it."""

    def facts(self) -> dict[str, Any]:
        state = [t for values in self.optimizer.state.values() for t in values.values() if isinstance(t, Tensor)]
        return {"samples": len(self.x), "state_bytes": sum(t.numel() * t.element_size() for t in state)}


class Step:
    """Steps of `task`; the reference is one process on the batches of all ranks."""

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
        stepper: Stepper = plugins.create(__package__, name, world, self._task)
        return stepper

    def check(self, variant: Stepper, world: World) -> str | None:
        _repeat(variant)
        error = float((_vector(variant.model) - self._end).norm() / (self._end - self._start).norm())
        if not variant.communicates or error <= TOLERANCE:
            return None
        return f"parameters after {CHECKED_STEPS} steps are {error:.2%} of the way off those of one process"


def case(name: str, world: World) -> Step:
    workload, optimizer = name.split()
    return Step(name, Task(WORKLOADS[workload], optimizer), world)


def _repeat(stepper: Stepper) -> None:
    for _ in range(CHECKED_STEPS):
        stepper.run()


def _vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])

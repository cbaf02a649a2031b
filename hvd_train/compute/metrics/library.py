"""Metrics of torchmetrics, and metrics of the user with its interface, as meters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import broadcast_json, gather_json
from hvd_train.compute.metrics.arguments import Arguments, calls
from hvd_train.compute.metrics.merge import gather, is_mergeable, merge_, metrics_in, states
from hvd_train.compute.metrics.meter import Value
from hvd_train.data.batch import Batch
from hvd_train.data.nesting import map_tensors, shown
from hvd_train.errors import UserError

if TYPE_CHECKING:
    from torchmetrics import Metric


class TorchMetric:
    """Updates `metric` on every rank, and computes its value on one rank from the states of all.

    `arguments` makes what its `update` is called with. A metric whose states cannot be merged is
    updated on the one rank, with the arguments of all ranks.
    """

    def __init__(self, name: str, metric: Metric, arguments: Arguments) -> None:
        self.name, self._metric, self._arguments = name, metric, arguments
        self.higher_is_better: bool | None = metric.higher_is_better
        self._merges = is_mergeable(metric)
        widen_(metric)
        self.reset()

    def reset(self) -> None:
        self._metric.reset()
        self._samples = 0
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def update(self, outputs: Any, batch: Batch) -> None:
        try:
            made = list(calls(self._metric, *self._arguments(outputs, batch), batch.samples))
            if self._merges:
                self._update(made)
            else:
                self._calls += made
        except UserError as error:
            raise self._failure(str(error)) from None
        except Exception as error:
            given = f"outputs {shown(outputs)}, targets {shown(batch.targets)}"
            raise self._failure(f"{_text(error)} (given {given})") from error
        self._samples += batch.samples

    def compute(self, comm: Communicator) -> dict[str, Value]:
        samples = gather_json(comm, self._samples)
        root = next((rank for rank, number in enumerate(samples) if number), None)
        if root is None:
            return {}
        of_ranks = gather(states(self._metric) if self._merges else self._calls, self.name, comm, root)
        value = problem = None
        if comm.rank == root:
            try:
                value = plain(self._of_all(of_ranks, samples))
            except Exception as error:  # code of torchmetrics or of the user
                problem = str(self._failure(_text(error)))
        problem, value = broadcast_json(comm, [problem, value], root)
        if problem:
            raise UserError(problem)
        return named(self.name, value)

    def _of_all(self, of_ranks: list[Any], samples: list[int]) -> Any:
        if self._merges:
            merge_(self._metric, of_ranks, samples)
        else:
            for made in of_ranks:
                self._update(map_tensors(lambda x: x.to(self._metric.device), made))
        return self._metric.compute()

    def _update(self, made: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> None:
        for positional, by_name in made:
            self._metric.update(*positional, **by_name)

    def _failure(self, text: str) -> UserError:
        return UserError(
            f"train.metrics: {self.name}: {text}; 'prepare: package.module:callable' makes other arguments from "
            "(outputs, batch)"
        )


def widen_(metric: Metric) -> None:
    """Make the floating-point states of `metric`, and of metrics that it wraps, float64 from its next reset on."""
    for _, module in metrics_in(metric):
        for name, default in module._defaults.items():
            if isinstance(default, Tensor) and default.is_floating_point():
                module._defaults[name] = default.double()


def named(name: str, value: Any) -> dict[str, Value]:
    """Return the values of a metric by name: those of a dict are called `name_KEY`."""
    return {f"{name}_{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}


def plain(value: Any) -> Any:
    """Return tensors in the nesting `value` as numbers or, if they have several, as lists of numbers."""
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def _text(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__

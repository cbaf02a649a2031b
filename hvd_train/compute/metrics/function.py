"""Functions of the user as meters: the mean of their values over samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import gather_json
from hvd_train.compute.metrics.library import named
from hvd_train.compute.metrics.meter import Value
from hvd_train.config import targets
from hvd_train.data.batch import Batch
from hvd_train.errors import UserError


class FunctionMean:
    """Averages what `function(outputs, targets)` returns: a mean over the samples of the batch.

    The function may also return one value for each sample, or a dict of such values. If its second
    parameter is called `batch`, it gets the whole batch. An attribute `higher_is_better` says which
    of two values is better.
    """

    def __init__(self, name: str, function: Callable[[Any, Any], Any]) -> None:
        self.name, self._function = name, function
        self.higher_is_better: bool | None = getattr(function, "higher_is_better", None)
        self._takes_batch = targets.positional(function)[1:2] == ["batch"]
        self.reset()

    def reset(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def update(self, outputs: Any, batch: Batch) -> None:
        found = self._function(outputs, batch.whole if self._takes_batch else batch.targets)
        for name, value in named(self.name, dict(found) if isinstance(found, Mapping) else found).items():
            of_name = self._sums.setdefault(name, [0.0, 0])
            of_name[0] += self._sum(value, batch.samples)
            of_name[1] += batch.samples

    def compute(self, comm: Communicator) -> dict[str, Value]:
        of_ranks = gather_json(comm, self._sums)
        names = dict.fromkeys(name for sums in of_ranks for name in sums)
        parts = {name: [sums[name] for sums in of_ranks if name in sums] for name in names}
        return {name: sum(s for s, _ in part) / sum(n for _, n in part) for name, part in parts.items()}

    def _sum(self, value: Any, samples: int) -> float:
        if isinstance(value, Tensor) and value.dim() == 1 and len(value) == samples:
            return float(value.double().sum())
        try:
            return float(value) * samples
        except (TypeError, ValueError, RuntimeError):
            kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UserError(
                f"train.metrics: {self.name} returned {kind}, expected a number, one number for each sample, or a dict of them"
            ) from None

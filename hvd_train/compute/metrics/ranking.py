"""How well the items of users are ranked among all items that the users have not in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.compute.calling import scores
from hvd_train.compute.metrics.meter import Value
from hvd_train.data.batch import Batch

RANKED = 10
"""Items at the top of the ranking that count."""


class MeanOverUsers:
    """Averages a figure of the first k items over users. Sums of users add up over batches and ranks.

    Outputs are scores (users, items). Targets (users, items) are 1 for held-out items of the user, 0
    for other candidates, and negative for items that are no candidates. It has no value for other
    outputs, such as those for training samples.
    """

    higher_is_better: bool | None = True

    def __init__(self, name: str, k: int) -> None:
        self.name, self._k = f"{name}_at_{k}", k
        self.reset()

    def reset(self) -> None:
        self._sum, self._users = 0.0, 0

    def update(self, outputs: Any, batch: Batch) -> None:
        found, targets = scores(outputs), batch.targets
        if isinstance(batch.inputs, dict) and "item" in batch.inputs:
            return
        candidates = found.masked_fill(targets < 0, -torch.inf)
        first = candidates.topk(min(self._k, found.shape[1])).indices
        relevant = (targets == 1).sum(1)
        figures = self._figures((targets.gather(1, first) == 1).double(), relevant.double())
        self._sum += float(figures[relevant > 0].sum())
        self._users += int((relevant > 0).sum())

    def compute(self, comm: Communicator) -> dict[str, Value]:
        totals = torch.tensor([self._sum, self._users], dtype=torch.float64)
        comm.all_reduce_(totals, "sum")
        total, users = totals.tolist()
        return {self.name: total / users} if users else {}

    def _figures(self, hits: Tensor, relevant: Tensor) -> Tensor:
        """Return the figure of each user, from its hits (users, k) and its number of held-out items."""
        raise NotImplementedError


class Recall(MeanOverUsers):
    """The share of the held-out items of a user that are among the first k."""

    def __init__(self, k: int) -> None:
        super().__init__("recall", k)

    def _figures(self, hits: Tensor, relevant: Tensor) -> Tensor:
        return hits.sum(1) / relevant


class NDCG(MeanOverUsers):
    """The gain of the held-out items of a user among the first k over that of the best ranking.

    An item at place p has the gain 1 / log2(p + 1) (Järvelin and Kekäläinen, TOIS 20(4), 2002).
    """

    def __init__(self, k: int) -> None:
        super().__init__("ndcg", k)

    def _figures(self, hits: Tensor, relevant: Tensor) -> Tensor:
        gains = 1 / torch.arange(2, hits.shape[1] + 2, dtype=torch.float64, device=hits.device).log2()
        best = gains.cumsum(0)[relevant.long().clamp(1, len(gains)) - 1]
        return (hits * gains).sum(1) / best

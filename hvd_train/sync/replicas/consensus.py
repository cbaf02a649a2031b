"""How far the replicas of a model are from their mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator


def relative_distance(own: Sequence[Tensor], mean: Sequence[Tensor]) -> Tensor:
    """Return ||own - mean|| / ||mean|| over all tensors together, a float64 scalar.

    0 if the mean is zero.
    """
    distance = _norm([a - b for a, b in zip(own, mean, strict=True)])
    return (distance / _norm(mean)).nan_to_num(0.0, 0.0, 0.0)


class ConsensusDistance:
    """The relative distance of a rank's replica to the mean, averaged over measurements."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self.total = torch.zeros(2, dtype=torch.float64)
        """The sum of the measured distances, and their number."""

    @property
    def average(self) -> float:
        """The average of this rank's measurements; after `reduce`, of all ranks' measurements."""
        total, count = self.total.tolist()
        return total / count if count else 0.0

    def measure(self, own: Sequence[Tensor], mean: Sequence[Tensor]) -> None:
        self.total += torch.stack([relative_distance(own, mean), torch.ones((), dtype=torch.float64)])

    def reduce(self) -> None:
        """Average the measurements over ranks; collective."""
        self._comm.all_reduce_(self.total, "mean")


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(t).double().cpu() for t in tensors]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros((), dtype=torch.float64)

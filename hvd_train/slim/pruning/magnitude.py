"""The weights of the smallest magnitude become zero."""

from __future__ import annotations

from torch import Tensor

from hvd_train.slim.criterion import Criterion, Weights


class Magnitude(Criterion):
    """Scores a weight w by |w| (Han et al., arXiv 1506.02626)."""

    def scores(self, weights: Weights) -> dict[str, Tensor]:
        return {name: w.abs() for name, w in weights.items()}


def create() -> Criterion:
    return Magnitude()

"""The contract of a pruning method: it scores weights, and the lowest scores become zero.

A pruning method is a file in `hvd_train/slim/pruning` whose `create(**options)` returns a
`Criterion`. Only rank 0 calls it. All ranks receive the weights to drop from rank 0, so they are
equal everywhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

Weights = Mapping[str, Tensor]
"""Values of the weights that are pruned, by parameter name."""


class Criterion(ABC):
    """Scores each weight of a model whose parameters all ranks agree on."""

    def begin(self, weights: Weights) -> None:  # noqa: B027
        """Take the weights before the first step. Not called if a checkpoint has been loaded."""

    @abstractmethod
    def scores(self, weights: Weights) -> dict[str, Tensor]:
        """Return the score of each weight, in its shape; called at each step that prunes.

        Weights with higher scores are kept. The scores of weights that are already dropped do not
        count.
        """

    def state(self) -> dict[str, Tensor]:
        """Return the state that a resumed run needs."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Restore `state`; empty if the checkpoint is of another method."""


__all__ = ["Criterion", "Weights"]

"""How many updates of the optimizer follow the steps of environments, for agents with a replay memory."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_train.agents.base import Learner, Rollout
from hvd_train.errors import UserError


class Updates:
    """`ratio` updates for each environment step after the `warmup`.

    Both count the steps of the ranks that learn together, so that as many of them as there are make
    the same number of updates.
    """

    def __init__(self, ratio: float, warmup: int) -> None:
        self._ratio, self._warmup = ratio, warmup
        self._collected = self._done = 0

    def due(self, rollout: Rollout, learner: Learner) -> int:
        """Return the number of updates after `rollout`; collective. UserError if there is none."""
        own = torch.tensor([float(rollout.rewards.numel()), 1.0], dtype=torch.float64)
        collected, ranks = learner.sum(own).tolist()
        self._collected += int(collected)
        # A rank that learns alone has its share of the warm-up.
        warmup = self._warmup * ranks / learner.workers
        number = int(self._ratio * max(0.0, self._collected - warmup)) - self._done
        if number < 1:
            raise UserError(
                f"agent.updates: {self._ratio:g} for each of the {collected:g} environment steps of an epoch is less than "
                "one update; raise data.steps or agent.updates"
            )
        self._done += number
        return number

    def state(self) -> dict[str, Tensor]:
        """Return what `load` resumes from."""
        return {"counts": torch.tensor([self._collected, self._done])}

    def load(self, state: dict[str, Tensor]) -> None:
        self._collected, self._done = state["counts"].tolist()

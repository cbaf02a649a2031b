"""The loss of an agent, as the trainer takes it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hvd_train.agents.base import ACTIVE, Agent
from hvd_train.compute.loss import Loss
from hvd_train.data.batch import Batch


class AgentLoss(Loss):
    """What the agent says about the outputs for its lesson."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def check(self, outputs: Any, batch: Batch) -> None:
        self._agent.check(outputs)

    def __call__(self, outputs: Any, batch: Batch) -> Tensor | dict[str, Tensor]:
        targets = dict(batch.targets)
        active = targets.pop(ACTIVE, None)
        if active is not None:
            outputs, targets = outputs[active], {name: values[active] for name, values in targets.items()}
        return self._agent.loss(outputs, targets)

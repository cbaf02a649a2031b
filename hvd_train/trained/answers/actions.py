"""The best actions of an agent."""

from __future__ import annotations

from typing import Any

from hvd_train.compute.calling import scores
from hvd_train.compute.loss import wide
from hvd_train.trained.answer import AnswerContext, Columns


class Choices:
    """Answers with `action`, the number of the best choice, and `scores`, a list with one for each choice."""

    def __init__(self, context: AnswerContext) -> None:
        self._run = context.run

    def __call__(self, inputs: Any) -> Columns:
        found = wide(scores(self._run(inputs)))
        return {"action": found.argmax(-1).cpu().numpy(), "scores": found.tolist()}

    def record(self, row: dict[str, Any]) -> dict[str, Any]:
        return row


class Numbers:
    """Answers with `action`, a list of the numbers of the best action."""

    def __init__(self, context: AnswerContext) -> None:
        self._run = context.run

    def __call__(self, inputs: Any) -> Columns:
        return {"action": wide(scores(self._run(inputs))).tolist()}

    def record(self, row: dict[str, Any]) -> dict[str, Any]:
        return row


def create(context: AnswerContext) -> Choices | Numbers:
    return Choices(context) if context.document["agent"]["actions"]["choices"] else Numbers(context)

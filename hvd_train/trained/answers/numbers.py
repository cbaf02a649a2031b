"""The numbers of a regression, under the name of the target."""

from __future__ import annotations

from typing import Any

from hvd_train.compute.calling import scores
from hvd_train.compute.loss import wide
from hvd_train.trained.answer import AnswerContext, Columns


class Numbers:
    """Answers with one column for each output: the name of the target, or `value`, numbered from 0."""

    def __init__(self, context: AnswerContext) -> None:
        self._run = context.run
        name = context.target or "value"
        outputs = context.spec.outputs
        self._names = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]

    def __call__(self, inputs: Any) -> Columns:
        outputs = wide(scores(self._run(inputs)))
        found = outputs.reshape(len(outputs), len(self._names)).cpu().numpy()
        return {name: found[:, i] for i, name in enumerate(self._names)}

    def record(self, row: dict[str, Any]) -> dict[str, Any]:
        return row


def create(context: AnswerContext) -> Numbers:
    return Numbers(context)

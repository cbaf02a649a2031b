"""The outputs of a model as they are, for tasks that are neither classes nor numbers nor tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hvd_train.compute.calling import scores
from hvd_train.compute.loss import wide
from hvd_train.data.nesting import shown
from hvd_train.errors import UserError
from hvd_train.trained.answer import AnswerContext, Columns


class Outputs:
    """Answers with `output`: nested lists of the numbers that the model returns for a record."""

    def __init__(self, context: AnswerContext) -> None:
        self._run = context.run

    def __call__(self, inputs: Any) -> Columns:
        outputs = scores(self._run(inputs))
        if not isinstance(outputs, Tensor) or not outputs.dim():
            raise UserError(f"the model returns {shown(outputs)}, expected a tensor, or one under 'logits'")
        return {"output": wide(outputs).tolist()}

    def record(self, row: dict[str, Any]) -> dict[str, Any]:
        return row


def create(context: AnswerContext) -> Outputs:
    return Outputs(context)

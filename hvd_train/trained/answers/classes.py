"""The most probable classes by name, and their probabilities."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hvd_train.compute.calling import scores
from hvd_train.compute.loss import wide
from hvd_train.errors import UserError
from hvd_train.trained.answer import AnswerContext, Columns, Named, suffix


class Classes:
    """Answers with `class` and `probability`, then `class_2`, `probability_2` and so on."""

    def __init__(self, context: AnswerContext) -> None:
        self._run, self._loss = context.run, context.loss
        self._names = list(context.classes) or list(range(context.spec.outputs))
        self._top = min(context.top, len(self._names))

    def __call__(self, inputs: Any) -> Columns:
        probabilities = self._probabilities(wide(scores(self._run(inputs))))
        if self._top == 1:
            values, codes = probabilities.max(-1, keepdim=True)
        else:
            values, codes = probabilities.topk(self._top, -1)
        found: dict[str, Any] = {}
        for i in range(self._top):
            found["class" + suffix(i)] = Named(codes[:, i].cpu().numpy(), self._names)
            found["probability" + suffix(i)] = values[:, i].cpu().numpy()
        return found

    def record(self, row: dict[str, Any]) -> dict[str, Any]:
        top = [
            {"class": row["class" + suffix(i)], "probability": row["probability" + suffix(i)]} for i in range(self._top)
        ]
        return {**top[0], "top": top} if self._top > 1 else top[0]

    def _probabilities(self, outputs: Tensor) -> Tensor:
        """Return probabilities (n, classes) of the scores that the loss of the run takes."""
        if outputs.dim() != 2 or outputs.shape[1] != len(self._names):
            raise UserError(
                f"the model returns outputs of shape {tuple(outputs.shape)}, expected (samples, {len(self._names)}): "
                "one score for each class"
            )
        return outputs.exp() if self._loss == "nll" else outputs.softmax(-1)


def create(context: AnswerContext) -> Classes:
    return Classes(context)

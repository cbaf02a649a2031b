"""Probabilities of labels that do not exclude one another, as the loss `bce` trains them."""

from __future__ import annotations

from typing import Any

import numpy as np

from hvd_train.compute.calling import scores
from hvd_train.compute.loss import wide
from hvd_train.trained.answer import AnswerContext, Columns, Named


class Labels:
    """Answers with the probability of each label, numbered from 0.

    One label of two classes answers with `class` and `probability`, as `classes` does.
    """

    def __init__(self, context: AnswerContext) -> None:
        self._run = context.run
        self._binary = context.spec.task == "classification"
        self._names = list(context.classes) or [0, 1]

    def __call__(self, inputs: Any) -> Columns:
        outputs = wide(scores(self._run(inputs)))
        found = outputs.reshape(len(outputs), -1).sigmoid().cpu().numpy()
        if self._binary:
            codes = (found[:, 0] >= 0.5).astype(np.int64)
            return {"class": Named(codes, self._names), "probability": np.where(codes, found[:, 0], 1 - found[:, 0])}
        return {f"probability_{i}": found[:, i] for i in range(found.shape[1])}

    def record(self, row: dict[str, Any]) -> dict[str, Any]:
        return row


def create(context: AnswerContext) -> Labels:
    return Labels(context)

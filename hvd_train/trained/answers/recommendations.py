"""The items that a user has not in training, best first, by their ids."""

from __future__ import annotations

from typing import Any

import torch

from hvd_train.compute.calling import scores
from hvd_train.compute.loss import wide
from hvd_train.data.files import import_extra
from hvd_train.data.ratings import ids, seen
from hvd_train.data.ratings.ids import UNKNOWN
from hvd_train.trained.answer import AnswerContext, Columns, suffix


class Recommendations:
    """Answers with the id under the name of its column, `item` say, and `score`, then `item_2`, `score_2` and so on.

    Both are missing where a user has no items left.
    """

    def __init__(self, context: AnswerContext) -> None:
        self._run, document = context.run, context.document
        self._name = str(document["item"]["name"])
        self._items = ids.saved(document["item"]["ids"])
        self._seen = seen.saved(document["seen"])
        self._top = min(context.top, len(self._items))

    def __call__(self, inputs: Any) -> Columns:
        array = import_extra("pyarrow").array
        found = wide(scores(self._run(inputs))).cpu().clone()
        found[:, UNKNOWN] = -torch.inf
        rows, items = self._seen.of(inputs["user"].cpu().numpy())
        found[torch.from_numpy(rows), torch.from_numpy(items)] = -torch.inf
        values, numbers = (of.numpy() for of in found.topk(self._top, -1))
        columns: dict[str, Any] = {}
        for i in range(self._top):
            none = values[:, i] == -torch.inf
            columns[self._name + suffix(i)] = self._items.values.take(array(numbers[:, i] - 1, mask=none))
            columns["score" + suffix(i)] = array(values[:, i], mask=none)
        return columns

    def record(self, row: dict[str, Any]) -> dict[str, Any]:
        top = [
            {self._name: row[self._name + suffix(i)], "score": row["score" + suffix(i)]}
            for i in range(self._top)
            if row["score" + suffix(i)] is not None or not i
        ]
        return {**top[0], "top": top} if self._top > 1 else top[0]


def create(context: AnswerContext) -> Recommendations:
    return Recommendations(context)

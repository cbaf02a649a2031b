"""The mean of training samples, which can stand for an absent input."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hvd_train.data.batch import Batch
from hvd_train.data.nesting import tensors
from hvd_train.data.survey.samples import entries
from hvd_train.errors import UserError

SAMPLES = 64


class Means:
    """Means over `SAMPLES` random samples of the training split, equal on every rank."""

    def __init__(self, train: Any, read: Callable[[Any], Batch], seed: int) -> None:
        self._train, self._read, self._seed = train, read, seed
        self._leaves: list[list[Tensor]] | None = None

    def __call__(self, number: int) -> Tensor:
        """Return the mean of one of the tensors of inputs.

        Samples of different lengths have the mean over their last dimension, which has size 1 then.
        UserError for samples that differ in other dimensions.
        """
        if self._leaves is None:
            batches = (self._train.batch(entry) for entry in entries(self._train, 1, self._seed))
            known = itertools.islice((b for b in batches if b is not None), SAMPLES)
            self._leaves = [[x[0] for x in tensors(self._read(b).inputs)] for b in known]
        leaves = [sample[number] for sample in self._leaves]
        if len({leaf.shape for leaf in leaves}) > 1:
            leaves = [leaf.mean(-1, keepdim=True) for leaf in leaves]
        if len({leaf.shape for leaf in leaves}) > 1:
            raise UserError("--baseline: training samples have different shapes, so they have no mean; use zero")
        return torch.stack(leaves).mean(0)

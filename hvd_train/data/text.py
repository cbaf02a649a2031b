"""Bytes of local files as tokens of a language model, each to be predicted from those before it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hvd_train.data._source import existing
from hvd_train.data.base import Dataset
from hvd_train.errors import UserError
from hvd_train.options import Annotated, Field, Fraction, PositiveInt
from hvd_train.spec import DataSpec

VOCABULARY = 256


@dataclass(frozen=True)
class TextSplit:
    """Neighbouring windows of `length` of the `tokens` (uint8); targets are the inputs one token on."""

    tokens: Tensor
    length: int

    def __len__(self) -> int:
        return max(len(self.tokens) - 1, 0) // self.length

    @property
    def labels(self) -> Tensor:
        return torch.full((len(self),), -1)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        positions = indices[:, None] * self.length + torch.arange(self.length)
        return self.tokens[positions].long(), self.tokens[positions + 1].long()


def create(
    *,
    paths: Annotated[list[str], Field(min_length=1), "files whose bytes are read, one after the other"],
    length: Annotated[PositiveInt, "tokens of a sample, and so the context of a model"] = 128,
    test_fraction: Annotated[Fraction, "share of the text, its end, held out for evaluation"] = 0.1,
) -> Dataset:
    """Inputs and targets are int64 of shape (n, length). UserError for text too short for one sample."""
    text = np.concatenate([np.fromfile(existing(path, "paths"), np.uint8) for path in paths])
    cut = len(text) - round(len(text) * test_fraction)
    train, test = (TextSplit(part, length) for part in torch.from_numpy(text).tensor_split([cut]))
    if len(train) == 0:
        raise UserError(f"{', '.join(paths)}: {cut} bytes for training, expected more than length={length}")
    return Dataset(train, test, DataSpec((length,), VOCABULARY, "language"))

"""Samples of a language model: windows of a long row of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.base import Dataset
from hvd_train.data.memory.joined import Joined
from hvd_train.data.spec import DataSpec
from hvd_train.data.value_checks import Array
from hvd_train.errors import UserError

CHUNK = 2**20
"""Tokens that are checked at a time."""


@dataclass(frozen=True)
class Windows:
    """Neighbouring windows of `length` tokens. The targets are the inputs, shifted by one token.

    `batch` raises UserError for a token that is not below the vocabulary.
    """

    tokens: Joined
    length: int
    vocabulary: int

    def __len__(self) -> int:
        return max(len(self.tokens) - 1, 0) // self.length

    @property
    def labels(self) -> Tensor:
        return torch.tensor(-1).expand(len(self))

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.tokens.windows(indices * self.length, self.length + 1)
        if tokens.size and tokens.max() >= self.vocabulary:
            row, column = np.argwhere(tokens >= self.vocabulary)[0].tolist()
            part, position = self.tokens.place(int(indices[row]) * self.length + column)
            raise beyond(part.file.path, position, int(tokens[row, column]), self.vocabulary)
        windows = torch.from_numpy(tokens.astype(np.int64))
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def first_beyond(tokens: Array, vocabulary: int) -> int | None:
    """Return the position of the first of `tokens` that is not below `vocabulary`; None without one."""
    for start in range(0, len(tokens), CHUNK):
        part = tokens[start : start + CHUNK]
        if part.max() >= vocabulary:
            return start + int((part >= vocabulary).argmax())
    return None


def beyond(path: str, position: int, token: int, vocabulary: int) -> UserError:
    """Return the error for a token that is not below `vocabulary`."""
    return UserError(
        f"{path}: token number {position} is {token}, expected tokens below the vocabulary of {vocabulary}; "
        "check data.dtype and data.vocabulary"
    )


def dataset(
    parts: Mapping[str, Joined], length: int, vocabulary: int, counted: str, preprocessing: dict[str, Any]
) -> Dataset:
    """Return the data set of the tokens in `parts`: for training, for evaluation, and for others by name.

    Raise UserError if there is no training sample; `counted` is its beginning with the tokens as %d.
    """
    train, test, *others = (Windows(part, length, vocabulary) for part in parts.values())
    if len(train) == 0:
        raise UserError(f"{counted % len(train.tokens)} for training, expected more than length={length}")
    spec = DataSpec((length,), vocabulary, "language")
    by_name = dict(zip([*parts][2:], others, strict=True))
    return Dataset(train, test, spec, preprocessing=preprocessing, others=by_name, input={"kind": "text"})

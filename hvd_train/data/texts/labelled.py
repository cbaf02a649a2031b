"""Texts with labels as samples: dicts of tokens and a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.memory.mapped import MappedArray
from hvd_train.data.records.fields import LABELS
from hvd_train.data.texts.encoder import TextEncoder, Texts
from hvd_train.data.tokenizing.texts import dtype_of
from hvd_train.data.value_checks import Array
from hvd_train.errors import UserError

IDS, TYPES, MASK = "input_ids", "token_type_ids", "attention_mask"
"""The keys of samples, as models of the library transformers call them."""


@dataclass(frozen=True)
class LabelledTexts:
    """Samples `{input_ids, labels}`, and `token_type_ids` of pairs.

    Sample i has the tokens from `ends[i]` to `ends[i + 1]`.
    """

    ids: MappedArray
    types: MappedArray | None
    ends: MappedArray
    targets: MappedArray
    damaged: Mapping[int, str]
    """The messages for damaged samples by position, in the order of the file."""
    name: str

    @property
    def damage(self) -> str | None:
        """The message for the damaged sample that comes first in the file."""
        return next(iter(self.damaged.values()), None)

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def labels(self) -> Tensor:
        if self.targets.dtype.kind == "f":
            return torch.full((len(self),), -1)
        return torch.from_numpy(self.targets.values.copy())

    @cached_property
    def lengths(self) -> Tensor:
        """The number of tokens of each sample, int64."""
        return torch.from_numpy(np.diff(self.ends.values))

    def item(self, index: int) -> dict[str, Tensor]:
        if index in self.damaged:
            raise UserError(self.damaged[index])
        start, end = self.ends.values[index : index + 2].tolist()
        target = torch.tensor(self.targets.values[index : index + 1])
        return {
            IDS: _int64(self.ids.values[start:end]),
            **({} if self.types is None else {TYPES: _int64(self.types.values[start:end])}),
            LABELS: target if target.is_floating_point() else target[0],
        }


def _int64(values: Array) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))


@dataclass(frozen=True)
class Encoded:
    """The tokens of texts, one after another."""

    arrays: Mapping[str, Array]
    """`ids`, `ends` and, for pairs, `types`, as `LabelledTexts` takes them."""
    cut: int
    """The texts that have more tokens than wanted."""
    empty: Sequence[int]
    """The texts without any token."""


def encoded(encoder: TextEncoder, rows: Sequence[Texts]) -> Encoded:
    """Return the tokens of `rows`; UserError for a token that is not below the vocabulary."""
    none = np.empty(0, np.int64)
    ids, types, cut = [none], [none], 0
    for sample in encoder(rows):
        ids.append(np.asarray(sample.ids, np.int64))
        types.append(np.asarray(sample.types, np.int64))
        cut += sample.cut
    sizes = np.array([len(one) for one in ids], np.int64)
    tokens, vocabulary = np.concatenate(ids), encoder.tokenizer.vocabulary
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocabulary:
        raise UserError(f"data.tokenizer: found the token {tokens.max()}, expected numbers below {vocabulary}")
    arrays = {"ids": tokens.astype(dtype_of(vocabulary)), "ends": sizes.cumsum()}
    if encoder.pair:
        arrays["types"] = np.concatenate(types).astype(np.uint8)
    return Encoded(arrays, cut, np.flatnonzero(sizes[1:] == 0).tolist())

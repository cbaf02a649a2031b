"""Pairs of token sequences as samples of an encoder-decoder model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.memory.mapped import MappedArray
from hvd_train.data.value_checks import Array


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length: row i ends at `ends[i]`, where the next one begins."""

    values: MappedArray
    ends: MappedArray

    def __len__(self) -> int:
        return len(self.ends)

    def row(self, index: int) -> Array:
        start = int(self.ends.values[index - 1]) if index else 0
        return self.values.values[start : int(self.ends.values[index])]

    @property
    def lengths(self) -> Array:
        """The length of each row, int64."""
        found: Array = np.diff(self.ends.values, prepend=0)
        return found


def ragged(name: str, rows: list[Array] | list[list[int]], dtype: Any) -> dict[str, Array]:
    """Return the two arrays of `Ragged` by name."""
    parts = [np.asarray(row, dtype) for row in rows]
    return {
        f"{name} values": np.concatenate([np.empty(0, dtype), *parts]),
        f"{name} ends": np.cumsum([len(part) for part in parts], dtype=np.int64),
    }


@dataclass(frozen=True)
class PairItems:
    """Samples `input_ids`, `attention_mask`, `decoder_input_ids` and `labels`, int64.

    The source ends with the token `end`. The decoder gets the token `begin` and the target, and has to
    predict the target and `end`.
    """

    name: str
    sources: Ragged
    targets: Ragged
    source_texts: Ragged
    target_texts: Ragged
    begin: int
    end: int

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def labels(self) -> Tensor:
        return torch.tensor(-1).expand(len(self))

    @property
    def lengths(self) -> Tensor:
        """The tokens of source and target together."""
        return torch.from_numpy(self.sources.lengths + self.targets.lengths)

    def item(self, index: int) -> dict[str, Tensor]:
        source, target = self.sources.row(index), self.targets.row(index)
        inputs = np.append(source.astype(np.int64), self.end)
        around = np.concatenate([[self.begin], target, [self.end]]).astype(np.int64)
        return {
            "input_ids": torch.from_numpy(inputs),
            "attention_mask": torch.ones(len(inputs), dtype=torch.int64),
            "decoder_input_ids": torch.from_numpy(around[:-1]),
            "labels": torch.from_numpy(np.append(around[1:-1], self.end)),
        }

    def texts(self, index: int) -> tuple[str, str]:
        """Return source and target as they stand in the file."""
        source, target = (side.row(index).tobytes().decode() for side in (self.source_texts, self.target_texts))
        return source, target

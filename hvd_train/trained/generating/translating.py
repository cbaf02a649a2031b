"""Writes a target for each source with an encoder-decoder model, in batches of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hvd_train.trained.generating.scores import Start
from hvd_train.trained.generating.search import Search
from hvd_train.trained.generating.searching import Generated, Limits, generate

ROWS = 128
"""Sequences that the model continues at once."""


@dataclass(frozen=True)
class Translate:
    """Makes targets that begin after the token `begin`, have at least one token, and at most `steps` with `end`."""

    start: Start
    search: Search
    begin: int
    end: int | None
    steps: int

    def __call__(self, sources: Sequence[Tensor]) -> list[Generated]:
        """Return the target of each source, int64 `(n,)`, with the token that ends it."""
        found: dict[int, Generated] = {}
        order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
        size = max(1, ROWS // self.search.beams)
        for at in range(0, len(order), size):
            numbers = order[at : at + size]
            found |= zip(numbers, self._batch([sources[i] for i in numbers]), strict=True)
        return [found[i] for i in range(len(sources))]

    def _batch(self, sources: Sequence[Tensor]) -> list[Generated]:
        inputs = {
            "input_ids": pad_sequence(list(sources), batch_first=True),
            "attention_mask": pad_sequence([torch.ones_like(source) for source in sources], batch_first=True),
        }
        first = torch.full((len(sources), 1), self.begin)
        keys = [source.tolist() for source in sources]
        return generate(self.start(inputs), first, Limits(self.steps, self.end, 1), self.search, keys)

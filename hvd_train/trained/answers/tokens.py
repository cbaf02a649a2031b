"""What a language model makes of texts: their continuation, the next token, and their loss."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hvd_train.compute.calling import scores
from hvd_train.compute.loss import wide
from hvd_train.data.tokenizing import saved
from hvd_train.trained.answer import AnswerContext, Columns, suffix
from hvd_train.trained.generating.searching import Limits, generate

TOKENS = 16
"""Tokens with which a text is continued by default."""


class Tokens:
    """Answers with `completion`, `next`, `probability` and `loss`.

    `completion` are the tokens that the search chooses, up to the token that ends a document. `next` is
    the most probable next token, and further ones with `top` > 1. `loss` is the mean negative
    log-likelihood of the tokens of a text, in nats, in windows of the length of training; None for a
    single token. Texts of equal length make a batch: none is padded.
    """

    def __init__(self, context: AnswerContext) -> None:
        self._run, self._length = context.run, context.spec.input_shape[0]
        self._top = min(context.top, context.spec.outputs)
        self._more = TOKENS if context.tokens is None else context.tokens
        self._start, self._search = context.decode, context.search
        facts = saved.described(context.document, context.spec)
        self._decode, self._end = saved.decoder(facts), facts.get("end")

    def __call__(self, inputs: Any) -> Columns:
        if not isinstance(inputs, list):
            return {"output": [self._text(row.tolist()) for row in self._scores(inputs).argmax(-1)]}
        rows: list[dict[str, Any]] = [{}] * len(inputs)
        for numbers in _by_length(inputs):
            texts = torch.stack([inputs[i] for i in numbers])
            for i, row in zip(numbers, self._rows(texts), strict=True):
                rows[i] = row
        return {name: [row[name] for row in rows] for name in rows[0]}

    def record(self, row: dict[str, Any]) -> dict[str, Any]:
        if self._top == 1 or "next" not in row:
            return row
        top = [
            {"next": row["next" + suffix(i)], "probability": row["probability" + suffix(i)]} for i in range(self._top)
        ]
        return {name: row[name] for name in ("completion", "next", "probability", "loss")} | {"top": top}

    def _rows(self, texts: Tensor) -> list[dict[str, Any]]:
        """Return the answers to texts (n, length) of tokens."""
        values, codes = self._next(texts).softmax(-1).topk(self._top, -1)
        losses, completions = self._losses(texts), self._completions(texts)
        return [
            {
                "completion": self._text(completion),
                **{"next" + suffix(i): self._text([code]) for i, code in enumerate(of)},
                **{"probability" + suffix(i): value for i, value in enumerate(chances)},
                "loss": loss,
            }
            for completion, of, chances, loss in zip(completions, codes.tolist(), values.tolist(), losses, strict=True)
        ]

    def _next(self, texts: Tensor) -> Tensor:
        """Return the scores (n, vocabulary) of the token after each text."""
        return self._scores(texts[:, -self._length :])[:, -1]

    def _losses(self, texts: Tensor) -> Sequence[float | None]:
        if texts.shape[1] < 2:
            return [None] * len(texts)
        total = torch.zeros(len(texts))
        for start in range(0, texts.shape[1] - 1, self._length):
            window = texts[:, start : start + self._length + 1]
            found = self._scores(window[:, :-1])
            total += (
                F.cross_entropy(found.transpose(1, 2), window[:, 1:].to(found.device), reduction="none").sum(1).cpu()
            )
        return (total / (texts.shape[1] - 1)).tolist()

    def _completions(self, texts: Tensor) -> list[list[int]]:
        assert self._start is not None
        found = generate(self._start(None), texts, Limits(self._more, self._end), self._search)
        return [one.tokens for one in found]

    def _scores(self, inputs: Any) -> Tensor:
        return wide(scores(self._run(inputs)))

    def _text(self, tokens: list[int]) -> Any:
        return tokens if self._decode is None else self._decode(tokens)


def _by_length(texts: Sequence[Tensor]) -> list[list[int]]:
    """Return the numbers of the texts, in groups of equal length."""
    groups: dict[int, list[int]] = defaultdict(list)
    for i, text in enumerate(texts):
        groups[len(text)].append(i)
    return list(groups.values())


def create(context: AnswerContext) -> Tokens:
    return Tokens(context)

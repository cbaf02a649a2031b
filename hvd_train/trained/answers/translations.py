"""What an encoder-decoder model makes of texts: a text for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hvd_train.data.tokenizing import saved
from hvd_train.trained.answer import AnswerContext, Columns
from hvd_train.trained.generating.translating import Translate


class Translations:
    """Answers with `translation` and `log_probability`.

    `log_probability` is the sum over the tokens of the translation and its end. `ended` is False for a
    translation that was cut at the most tokens.
    """

    def __init__(self, context: AnswerContext) -> None:
        assert context.decode is not None
        facts = saved.described(context.document, context.spec)
        steps = context.spec.input_shape[0] if context.tokens is None else context.tokens
        begin = context.document["input"]["begin"]
        self._translate = Translate(context.decode, context.search, begin, facts.get("end"), steps)
        self._decode = saved.decoder(facts)

    def __call__(self, inputs: Sequence[Tensor]) -> Columns:
        found = self._translate(inputs)
        return {
            "translation": [one.tokens if self._decode is None else self._decode(one.tokens) for one in found],
            "log_probability": [one.log_probability for one in found],
            "ended": [one.ended for one in found],
        }

    def record(self, row: dict[str, Any]) -> dict[str, Any]:
        return row


def create(context: AnswerContext) -> Translations:
    return Translations(context)

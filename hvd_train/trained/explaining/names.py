"""The names of outputs: classes, tokens, or numbers."""

from __future__ import annotations

from hvd_train.data.base import Dataset
from hvd_train.data.preprocessing import class_names
from hvd_train.data.tokenizing.saved import decoder, described
from hvd_train.errors import UserError, nearest


class Outputs:
    """The outputs of a model for the task of `data`."""

    def __init__(self, data: Dataset) -> None:
        self._count, self._read = data.spec.outputs, decoder(described(data.preprocessing, data.spec))
        self._language = data.spec.task == "language"
        self._names = class_names(data) or []

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens, and their numbers if the tokenizer is not known."""
        return self._read(tokens) if self._read else " ".join(f"[{token}]" for token in tokens)

    def name(self, number: int) -> str:
        """Return the name of the output `number`."""
        if self._language:
            return self.decode([number])
        return self._names[number] if number < len(self._names) else str(number)

    def number(self, word: str) -> int:
        """Return the output whose name or number is `word`; UserError if there is none."""
        names = [self.name(number) for number in range(self._count)]
        if word in names:
            return names.index(word)
        if word.isdecimal() and (int(word) < self._count or not self._count):
            return int(word)
        raise UserError(f"--class: no '{word}' among the outputs of the model{nearest(word, names)}")

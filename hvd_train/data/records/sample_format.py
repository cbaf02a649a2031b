"""How a record becomes a sample: which values, of which kind, and the numbers of classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hvd_train.config.options import TokenizerSection
from hvd_train.data.fitted import Fitted
from hvd_train.data.records.fields import Fields, pick
from hvd_train.data.records.values import Encode, Place, as_part, within
from hvd_train.data.spec import DataSpec
from hvd_train.data.tokenizing import saved
from hvd_train.data.tokenizing.base import Texts, Tokenizer, describe
from hvd_train.errors import UserError, nearest

TargetKind = Literal["class", "numbers", "value", "next"]
"""A class; float32 numbers `(k,)`; a value as it is; or the token that follows each token of the input."""


@dataclass(frozen=True)
class Tokens:
    """Makes int64 tokens `(n,)` of a text, at most `length`."""

    tokenizer: Tokenizer
    length: int
    name: str

    def __call__(self, text: str) -> Tensor:
        (tokens,) = self.tokenizer.encode([text])
        return torch.tensor(np.asarray(tokens[: self.length], np.int64))

    @property
    def document(self) -> dict[str, Any]:
        """The tokenizer as JSON for `data.json` of the run folder."""
        return describe(self.name, self.tokenizer)


def encoder(section: TokenizerSection | None, length: int, texts: Texts, fitted: Fitted | None = None) -> Encode:
    """Return what makes tokens of texts, or keeps texts if `section` is None.

    `texts` returns the training texts, for a tokenizer that learns from them and is not `fitted`.
    """
    if section is None:
        return str
    if fitted is not None:
        return Tokens(saved.tokenizer(fitted["tokenizer"], section), length, section.label)
    return Tokens(section.create(texts, expected=Tokenizer), length, section.label)


def language_spec(encode: Encode) -> DataSpec:
    """Return the description of samples that are tokens; UserError without a tokenizer."""
    if not isinstance(encode, Tokens):
        raise UserError("data.tokenizer is missing, expected one that makes tokens of texts")
    return DataSpec((encode.length,), encode.tokenizer.vocabulary, "language")


@dataclass(frozen=True)
class SampleFormat:
    """Makes samples of records."""

    fields: Fields
    kind: TargetKind = "value"
    classes: Mapping[str, int] = field(default_factory=dict)
    """The number of each class whose name is a text."""
    floats: frozenset[str] = frozenset()
    """The keys whose numbers are float32 even if all numbers of a record are integers."""
    encode: Encode = str
    outputs: int = 0
    """Integers that are classes are below this number; 0: the data were checked before."""

    @property
    def document(self) -> dict[str, Any]:
        """What becomes of texts, as JSON for `data.json` of the run folder."""
        named = {"target": {"name": self.fields.target, "classes": [*self.classes]}} if self.classes else {}
        tokens = {"tokenizer": self.encode.document} if isinstance(self.encode, Tokens) else {}
        return {**named, **tokens}

    @property
    def facts(self) -> dict[str, Any]:
        """How new records are read, as JSON for `data.json`."""
        inputs = self.fields.inputs
        return {
            "kind": "records",
            "inputs": inputs if isinstance(inputs, str) else {**inputs} if isinstance(inputs, Mapping) else [*inputs],
            "target": self.fields.target,
            "predicts": self.kind,
            "floats": sorted(self.floats),
            "length": self.encode.length if isinstance(self.encode, Tokens) else None,
        }

    def sample(self, record: Mapping[str, Any], place: Place) -> Any:
        """Return the sample of `record`; UserError, which begins with `place()`, for a wrong value."""
        values = {key: self._part(record, key, place) for key in self.fields.keys}
        if self.kind == "next":
            (tokens,) = values.values()
            if len(tokens) < 2:
                raise UserError(
                    f"{place()}: a text of {len(tokens)} tokens, expected at least 2, so that one predicts the other"
                )
            return tokens[:-1], tokens[1:]
        if isinstance(self.fields.inputs, str):
            values = {key: x.reshape(1) if isinstance(x, Tensor) and not x.dim() else x for key, x in values.items()}
        return self.fields.sample(values, self._target(record, place))

    def class_of(self, value: Any, place: Place) -> int:
        """Return the number of the class `value`; UserError if it is no class of this data."""
        value = value.item() if isinstance(value, np.ndarray | Tensor) and value.size == 1 else value
        if isinstance(value, str) and value in self.classes:
            return self.classes[value]
        if isinstance(value, int) and not self.classes and (not self.outputs or 0 <= value < self.outputs):
            return int(value)
        found = f"'{value}'" if isinstance(value, str) else f"{value}"
        expected = (
            f"one of the classes{nearest(str(value), self.classes)}"
            if self.classes
            else f"a class below {self.outputs}"
        )
        raise UserError(f"{place()}: found {found}, expected {expected}")

    def _part(self, record: Mapping[str, Any], key: str, place: Place) -> Any:
        value = pick(record, key, place)
        return as_part(value, within(place, key), self.encode, floats=key in self.floats)

    def _target(self, record: Mapping[str, Any], place: Place) -> Any:
        key = self.fields.target
        if key is None:
            return None
        if self.kind == "class":
            return torch.tensor(self.class_of(pick(record, key, place), within(place, key)))
        value = self._part(record, key, place)
        return value.reshape(-1) if self.kind == "numbers" else value

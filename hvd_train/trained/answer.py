"""The contract of an answer: what users read of the outputs of a model.

An answer is a file in `hvd_train/trained/answers` whose `create(context)` returns an `Answer`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hvd_train.config import plugins
from hvd_train.data.spec import DataSpec
from hvd_train.data.value_checks import Array
from hvd_train.trained.generating.scores import Start
from hvd_train.trained.generating.search import GREEDY, Search

PACKAGE = "hvd_train.trained.answers"


@dataclass(frozen=True)
class Named:
    """Classes by name: `names[codes[i]]` is the value of row i."""

    codes: Array
    names: Sequence[Any]

    def values(self) -> list[Any]:
        return [self.names[code] for code in self.codes.tolist()]


Columns = Mapping[str, "Named | Array | list[Any]"]
"""Columns of answers by name, with one value for each record."""


@dataclass(frozen=True)
class AnswerContext:
    """What an answer may know."""

    spec: DataSpec
    run: Callable[[Any], Any]
    """Returns the outputs of the model for the inputs of a batch."""
    loss: str
    """The name of the loss of the run."""
    target: str | None = None
    """The name of the target."""
    classes: Sequence[Any] = ()
    """The names of the classes; without names, classes are numbers."""
    document: Mapping[str, Any] = field(default_factory=dict)
    """The content of `data.json`."""
    tokens: int | None = None
    """The most tokens that a model writes; None: 16 after a text, or as many as in training for a translation."""
    decode: Start | None = None
    """Begins to generate tokens with the model."""
    search: Search = GREEDY
    """How generated tokens are chosen."""
    top: int = 1
    """The number of classes or items to name, the best first."""


class Answer(Protocol):
    """Runs the model and returns answers."""

    def __call__(self, inputs: Any) -> Columns:
        """Return the answers to the inputs of a batch, as columns."""

    def record(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to one record as JSON, from its values by column."""


def create(context: AnswerContext) -> Answer:
    """Return the answer that fits the task and the loss of a run."""
    made: Answer = plugins.create(PACKAGE, _kind(context), context)
    return made


def _kind(context: AnswerContext) -> str:
    if context.spec.task == "language":
        return "tokens"
    if context.spec.task == "seq2seq":
        return "translations"
    if context.loss == "bce":
        return "labels"
    known = {"classification": "classes", "regression": "numbers", "control": "actions", "ranking": "recommendations"}
    return known.get(context.spec.task, "outputs")


def suffix(place: int) -> str:
    """Return the ending of the column of the answer at `place`, from 0: none, _2, _3 and so on."""
    return f"_{place + 1}" if place else ""


def values(column: Named | Array | list[Any]) -> list[Any]:
    """Return a column as values of JSON."""
    if isinstance(column, Named):
        return column.values()
    return column if isinstance(column, list) else column.tolist()

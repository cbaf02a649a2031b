"""The contract of a kind of input: records of that kind become inputs of the model, as in training.

A kind is a file in `hvd_train/trained/inputs` whose `create(context)` returns an `Input`. What was
fitted on the training samples comes from `data.json` of the run folder; no data are read.
`data.json` names the kind (`Dataset.input`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from hvd_train.config import plugins
from hvd_train.config.schema import DataSection
from hvd_train.data.batch import divide
from hvd_train.data.load import collate_of
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError

PACKAGE = "hvd_train.trained.inputs"
NO_TARGET = 0
"""The target of a sample that has none."""

Record = Any
"""One input in terms of JSON: a table's row as a dict, a path or bytes of a file, a text, lists."""
Place = Callable[[int], str]
"""Returns the place of a record for messages, from its number in the block."""


def numbered(number: int) -> str:
    """Return the place of a record that has no other name."""
    return f"record {number} (from 0)"


@dataclass(frozen=True)
class InputContext:
    """What a kind of input may know."""

    spec: DataSpec
    document: Mapping[str, Any]
    """The content of `data.json`."""
    section: DataSection
    """The data section of the run."""
    batch: Callable[[list[Any]], Any] = list
    """Makes inputs of a batch from samples, whose targets do not count, as the run's collate function does."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What `data.json` says of the input; empty in folders of older runs."""
        found: Mapping[str, Any] = self.document.get("input", {})
        return found


@dataclass(frozen=True)
class Block:
    """Consecutive records."""

    records: Any
    """What `Input.encode` takes."""
    place: Place = numbered
    beside: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Columns that stand beside the predictions, such as the names of the files."""


@dataclass(frozen=True)
class Form:
    """What one record is in the body of a request to a server."""

    type: Any
    """Its type in JSON, for pydantic. Bytes are in base64. A text is never a path."""
    media: tuple[str, ...] = ()
    """Content types of a body that is one record, such as `image/*`."""
    decode: Callable[[bytes], Record] = bytes
    """Makes the record of such a body; UserError for a wrong one."""


def json_object(name: str, fields: Mapping[str, Any]) -> Any:
    """Return the type of a JSON object with these keys; further keys are ignored."""
    of = with_config(ConfigDict(extra="ignore", val_json_bytes="base64"))
    return of(TypedDict(name, dict(fields)))  # type: ignore[misc, operator]


class Input(ABC):
    """Makes inputs of records."""

    @abstractmethod
    def encode(self, records: Sequence[Record], place: Place = numbered) -> Any:
        """Return the inputs of a batch; UserError, which begins with `place(i)`, for a wrong record i."""

    @abstractmethod
    def blocks(self, paths: Sequence[str], keep: Sequence[str] = ()) -> Iterator[Block]:
        """Yield the records of files, of folders and of stdin (`-`), in order; UserError for bad ones.

        `keep` names the columns that stand beside.
        """

    def form(self) -> Form:
        """Return what a record is in a request; UserError if servers take none of this kind."""
        raise UserError("the run takes inputs that no request can hold; use ddl predict")

    def warnings(self) -> Iterable[str]:
        """Return what the user may want to know of all records so far."""
        return ()


def create(context: InputContext) -> Input:
    """Return the kind of input that `data.json` names; UserError if new records have no known form."""
    made: Input = plugins.create(PACKAGE, _kind(context), context)
    return made


def of_run(spec: DataSpec, document: Mapping[str, Any], section: DataSection) -> Input:
    """Return the input of a run, whose batches are made by the collate function of the run."""
    collated = collate_of(section, document.get("input", {}).get("pad", {}))
    return create(InputContext(spec, document, section, lambda s: divide(collated(s), section.label_key).inputs))


def _kind(context: InputContext) -> str:
    """Return the kind. Folders of older runs do not name it; what was fitted shows it."""
    document = context.document
    if "kind" in context.facts:
        return str(context.facts["kind"])
    if "columns" in document:
        return "table"
    if "files" in document:
        return "audio" if "rate" in document["files"] else "images"
    if context.spec.task == "language":
        return "text"
    if context.spec.input_shape:
        return "arrays"
    raise UserError(
        "data.json of the run does not say how its samples are made: a data source of your own made them; expected samples "
        "of one tensor, or a data source of ddl (ddl list data)"
    )

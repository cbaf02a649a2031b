"""A value that a command hands to the process that it starts: one JSON document in argv."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from typing_extensions import Self

from hvd_train.text import strict_json


@dataclass(frozen=True)
class Argument:
    """A dataclass whose fields have types of JSON."""

    def to_text(self) -> str:
        return strict_json.dumps_exact(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Self:
        return cls(**strict_json.loads_exact(text))

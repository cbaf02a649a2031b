"""What `ddl bench` asks of its ranks: one JSON document in argv."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Request:
    """`what` is a package beside this file, whose members `variants` are measured in every one of `cases`.

    Rank 0 writes what was measured to the file `output`; `columns` is the width of the terminal, None where there is none.
    """

    what: str
    world_size: int
    variants: list[str]
    cases: list[str]
    pairs: int
    output: str
    columns: int | None

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Request:
        return cls(**json.loads(text))

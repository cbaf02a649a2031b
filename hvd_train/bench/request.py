"""The measurement that `ddl bench` requests from its ranks: one JSON document in argv."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class BenchRequest:
    """Measure `variants` of the family `what`, a package beside this file, in each of `cases`.

    Rank 0 writes the result to the file `output`. `columns` is the width of the terminal, None
    without a terminal.
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
    def from_text(cls, text: str) -> BenchRequest:
        return cls(**json.loads(text))

"""The measurement that `ddl bench` requests from its ranks."""

from __future__ import annotations

from dataclasses import dataclass

from hvd_train.text.argument import Argument


@dataclass(frozen=True)
class BenchRequest(Argument):
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

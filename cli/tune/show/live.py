"""What a person sees of a search while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cli.output.streams import say
from cli.search.records import Record


class Live:
    def __init__(self, total: int, objectives: object, stream: object, *, quiet: bool = False) -> None: ...

    def changed(self, record: Record) -> None:
        if record.state not in ("running", "waiting"):
            say(f"trial {record.number} {record.state} {record.objectives} {record.reason}")

    def say(self, text: str) -> None:
        say(text)

    def update(self, trials: Sequence[Any]) -> None: ...

    def close(self) -> None: ...

"""A request that is refused, as its answer says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Refusal(Exception):
    """The answer to a request that cannot be served.

    `detail` is a sentence, or, for wrong fields, a list of where each is (`loc`), what was expected
    (`msg`) and what was found (`input`).
    """

    def __init__(
        self, status: int, detail: str | list[dict[str, Any]], headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})

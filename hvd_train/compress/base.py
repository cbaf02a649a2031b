"""The contract of a compressor: how few bytes an agreement takes."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Compressor(Protocol):
    """Turns a flat tensor into what travels and back.

    `reducible` says that payloads may be summed in flight; those of other compressors are gathered.
    A member is a file in this package whose `create()` returns one.
    """

    reducible: bool

    def compress(self, x: Tensor) -> tuple[Tensor, Any]:
        """The payload of `x`, and what `decompress` needs to know."""

    def decompress(self, payload: Tensor, context: Any) -> Tensor:
        """The tensor that `payload` stands for, in the dtype of the original."""

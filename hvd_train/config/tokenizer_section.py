"""The section of a tokenizer, which is an option of data sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from hvd_train.config.section import PluginSection


class TokenizerSection(PluginSection):
    package: ClassVar[str] = "hvd_train.data.tokenizers"
    default: ClassVar[str | None] = "bytes"
    passed: ClassVar[tuple[str, ...]] = ("texts",)
    product: ClassVar[str] = "a Tokenizer"
    name: str = Field("bytes", description="how text becomes tokens (ddl list tokenizers)")

    @classmethod
    def count_passed(cls, positional: Sequence[str]) -> int:
        """Return 1 if the first parameter is called `texts`: most tokenizers learn nothing."""
        return int(positional[:1] == ["texts"])

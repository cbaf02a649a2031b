"""What `ddl data tokenize` asks of the process that does the work."""

from __future__ import annotations

from pydantic import Field

from hvd_train.config.section import Section
from hvd_train.config.tokenizer_section import TokenizerSection


class TokenizeRequest(Section):
    """Texts, the file that gets their tokens, and the tokenizer."""

    inputs: list[str]
    output: str
    key: str
    """The key of the text in lines of JSON."""
    tokenizer: TokenizerSection = Field(default_factory=TokenizerSection)

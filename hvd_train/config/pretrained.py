"""What the data section takes from a pretrained model, unless it is written out."""

from __future__ import annotations

from typing import Any

from hvd_train.config.fetched import PREFIX, place

TOKENIZER = "tokenizer.json"
SOURCES = ("text", "text_classification", "translation")
"""Sources that make tokens in any case. Others make them only if they are given a tokenizer."""


def with_tokenizer_of_model(values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` of a configuration in which texts are read by the tokenizer of the pretrained model.

    A tokenizer that is written in the data section stays. A folder without a tokenizer changes nothing.
    """
    model, data = values.get("model"), values.get("data")
    if not isinstance(model, dict) or not isinstance(data, dict) or "tokenizer" in data:
        return values
    folder = model.get("pretrained")
    if data.get("name") not in SOURCES or not isinstance(folder, str) or not _has_tokenizer(folder):
        return values
    tokenizer = {"name": "file", "path": f"{folder.rstrip('/')}/{TOKENIZER}"}
    return {**values, "data": {**data, "tokenizer": tokenizer}}


def _has_tokenizer(folder: str) -> bool:
    """Return True if `folder` has a tokenizer. A set that is not fetched has one, and later the message says how to fetch it."""
    return folder.startswith(PREFIX) or (place(folder) / TOKENIZER).is_file()

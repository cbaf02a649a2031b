"""What the data section takes from a pretrained model, unless it is written out."""

from __future__ import annotations

from typing import Any

from hvd_train.config.fetched import PREFIX, place
from hvd_train.config.schema import DataSection

TOKENIZER = "tokenizer.json"


def with_tokenizer_of_model(values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` of a configuration in which texts are read by the tokenizer of the pretrained model.

    A tokenizer that is written in the data section stays. A folder without a tokenizer changes nothing.
    """
    model, data = values.get("model"), values.get("data")
    if not isinstance(model, dict) or not isinstance(data, dict) or "tokenizer" in data:
        return values
    folder, source = model.get("pretrained"), data.get("name")
    if not isinstance(folder, str) or source not in DataSection.members() or not _has_tokenizer(folder):
        return values
    if "tokenizer" not in DataSection.member_fields(source):
        return values
    tokenizer = {"name": "file", "path": f"{folder.rstrip('/')}/{TOKENIZER}"}
    return {**values, "data": {**data, "tokenizer": tokenizer}}


def _has_tokenizer(folder: str) -> bool:
    """Return True if `folder` has a tokenizer. A set that is not fetched has one, and later the message says how to fetch it."""
    return folder.startswith(PREFIX) or (place(folder) / TOKENIZER).is_file()

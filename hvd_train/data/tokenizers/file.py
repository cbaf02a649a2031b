"""A tokenizer in a JSON file of the library `tokenizers`, as most language models have one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hvd_train.config.options import Annotated
from hvd_train.data.files import find_file, import_extra
from hvd_train.data.tokenizing.library import EXTRA, LibraryTokenizer, end_of
from hvd_train.errors import UserError
from hvd_train.text import strict_json


def create(
    *,
    path: Annotated[
        str,
        "tokenizer.json of the library; or data.json of a run folder, or the JSON file beside tokens, which have a tokenizer",
    ],
    end: Annotated[
        str | None,
        "token that ends a document; by default the first of <|endoftext|>, <|end_of_text|>, </s>, <eos> and [SEP] that the "
        "vocabulary has",
    ] = None,
) -> LibraryTokenizer:
    """Return the tokenizer of the file, which always encodes a whole text, and in the same way.

    Raise UserError for a file that is missing or has no tokenizer.
    """
    file = find_file(path, "tokenizer.path")
    library = import_extra("tokenizers", EXTRA)
    try:
        tokenizer = library.Tokenizer.from_str(strict_json.dumps(_exact(_content(file))))
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"{path}: not a tokenizer of the library tokenizers: {error}") from error
    return LibraryTokenizer(tokenizer, end_of(tokenizer, end, path))


def _content(file: Path) -> dict[str, Any]:
    content = json.loads(file.read_text(encoding="utf-8"))
    saved = content.get("tokenizer") if isinstance(content, dict) else None
    found = json.loads(saved["json"]) if isinstance(saved, dict) and "json" in saved else content
    if not isinstance(found, dict) or "model" not in found:
        raise ValueError("expected an object with 'model'")
    return found


def _exact(content: dict[str, Any]) -> dict[str, Any]:
    """Return the tokenizer without truncation, padding and dropout, which are options of a model."""
    model = {**content["model"], "dropout": None} if "dropout" in content["model"] else content["model"]
    return {**content, "truncation": None, "padding": None, "model": model}

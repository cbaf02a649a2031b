"""The JSON file beside a file of tokens, which says what the tokens are.

`ddl data tokenize` writes `train.bin.json` beside `train.bin`. Token files of other programs, such
as those of nanoGPT, are plain numbers without one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvd_train.errors import UserError

DTYPES = ("uint16", "uint32")
SUFFIX = ".json"


@dataclass(frozen=True)
class Sidecar:
    """What the tokens of a file are."""

    dtype: str
    vocabulary: int
    tokens: int
    """The number of tokens in the file."""
    tokenizer: dict[str, Any]
    """The description of the tokenizer."""


def beside(path: Path) -> Path:
    """Return the path of the sidecar of the token file `path`."""
    return path.with_name(path.name + SUFFIX)


def read(path: Path) -> Sidecar | None:
    """Return the sidecar of the token file `path`, None without one; UserError if it is damaged."""
    file = beside(path)
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        sidecar = Sidecar(**{name: content[name] for name in Sidecar.__dataclass_fields__})
        if sidecar.dtype not in DTYPES or not (int(sidecar.vocabulary) > 0 <= int(sidecar.tokens)):
            raise ValueError(f"dtype {sidecar.dtype}, {sidecar.vocabulary} tokens in the vocabulary")
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: not what ddl data tokenize writes: {error}; tokenize again, or remove it") from error
    return sidecar

"""Arrays of integers as JSON, with as few bytes as the largest value needs."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np

from hvd_train.data.value_checks import Array


def pack(values: Array) -> dict[str, Any]:
    """Return integers >= 0, of one dimension, as JSON.

    The checksum stands before the values, so that a difference between two runs is one number.
    """
    kind = np.min_scalar_type(int(values.max(initial=0)))
    content = values.astype(kind.newbyteorder("<")).tobytes()
    return {
        "count": len(values),
        "type": kind.str.replace("|", "<"),
        "crc32": zlib.crc32(content),
        "base64": base64.b64encode(content).decode(),
    }


def unpack(document: dict[str, Any]) -> Array:
    """Return what `pack` packed, in int64."""
    return np.frombuffer(base64.b64decode(document["base64"]), document["type"]).astype(np.int64)

"""The options of a network and a rank that are slower than they are."""

from __future__ import annotations

import re
from typing import Any

from hvd_train.errors import UserError

LATENCY = "Milliseconds that a message takes more, on an emulated network."
GBPS = "Gbit/s of each rank's link to an emulated network."
STRAGGLER = "Rank that computes FACTOR times slower, as 3:5."


def section(latency_ms: float, gbps: float | None, straggler: str | None, world_size: int) -> dict[str, Any] | None:
    """`emulate` of what ranks are told; None where nothing is to be slower."""
    if latency_ms < 0:
        raise UserError(f"--latency-ms: expected milliseconds, got {latency_ms:g}")
    if gbps is not None and gbps <= 0:
        raise UserError(f"--gbps: expected Gbit/s above 0, got {gbps:g}")
    found: dict[str, Any] = {"latency_ms": latency_ms} if latency_ms else {}
    found |= {"gbps": gbps} if gbps is not None else {}
    found |= _straggler(straggler, world_size) if straggler is not None else {}
    return found or None


def _straggler(text: str, world_size: int) -> dict[str, Any]:
    match = re.fullmatch(r"(\d+):(\d+(?:\.\d+)?)", text)
    if match is None or float(match[2]) < 1:
        raise UserError(f"--straggler: '{text}' is none; expected RANK:FACTOR with a factor of at least 1, as 3:5")
    if int(match[1]) >= world_size:
        raise UserError(f"--straggler: no rank {match[1]} among {world_size}; expected 0 to {world_size - 1}")
    return {"straggler": int(match[1]), "factor": float(match[2])}

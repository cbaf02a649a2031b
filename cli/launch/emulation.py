"""The options that emulate a slower network and a slower rank."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from hvd_train.errors import UserError

LATENCY = "Latency in ms added to each message of an emulated network."
GBPS = "Bandwidth in Gbit/s of the emulated network at each rank."
STRAGGLER = "Emulate a rank that computes FACTOR times slower, such as 3:5."


@dataclass(frozen=True)
class Emulation:
    """The values of --latency-ms, --gbps and --straggler."""

    latency_ms: float = 0.0
    gbps: float | None = None
    straggler: str | None = None

    @property
    def is_on(self) -> bool:
        """True if something is to be slower."""
        return bool(self.latency_ms) or self.gbps is not None or self.straggler is not None

    def section(self, world_size: int) -> dict[str, Any] | None:
        """Return the field `emulate` of `config.launch.Launch`, or None if nothing is to be slower.

        UserError for a value out of range.
        """
        if self.latency_ms < 0:
            raise UserError(f"--latency-ms: expected milliseconds, got {self.latency_ms:g}")
        if self.gbps is not None and self.gbps <= 0:
            raise UserError(f"--gbps: expected Gbit/s above 0, got {self.gbps:g}")
        section: dict[str, Any] = {"latency_ms": self.latency_ms} if self.latency_ms else {}
        section |= {"gbps": self.gbps} if self.gbps is not None else {}
        section |= _straggler(self.straggler, world_size) if self.straggler is not None else {}
        return section or None


def _straggler(text: str, world_size: int) -> dict[str, Any]:
    match = re.fullmatch(r"(\d+):(\d+(?:\.\d+)?)", text)
    if match is None or float(match[2]) < 1:
        raise UserError(f"--straggler: expected RANK:FACTOR with a factor of at least 1, such as 3:5, got '{text}'")
    if int(match[1]) >= world_size:
        raise UserError(f"--straggler: no rank {match[1]} among {world_size}; expected 0 to {world_size - 1}")
    return {"straggler": int(match[1]), "factor": float(match[2])}

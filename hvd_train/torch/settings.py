"""The HOROVOD_* variables, read once by `init`. Horovod's documentation describes them."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

LOG = logging.getLogger("hvd_train.torch")

_LEVELS = {"trace": 5, "debug": 10, "info": 20, "warning": 30, "error": 40, "fatal": 50}


@dataclass(frozen=True)
class Settings:
    """Sizes are in bytes and times in seconds; 0 turns a time off.

    `cycle` is the least time between rounds.
    """

    fusion_threshold: int = 128 << 20
    cache_capacity: int = 1024
    cycle: float = 0.0
    stall_warning: float = 60.0
    stall_shutdown: float = 0.0
    timeline: str = ""
    mark_cycles: bool = False
    dynamic_process_sets: bool = False

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read the settings. Raise ValueError for a variable that is not a number."""

        def number(name: str, default: float) -> float:
            text = environment.get(name, "")
            try:
                return float(text) if text else default
            except ValueError:
                raise ValueError(f"{name}: expected a number, got '{text}'") from None

        def flag(name: str) -> bool:
            return number(name, 0) > 0

        return cls(
            fusion_threshold=int(number("HOROVOD_FUSION_THRESHOLD", cls.fusion_threshold)),
            cache_capacity=int(number("HOROVOD_CACHE_CAPACITY", cls.cache_capacity)),
            cycle=number("HOROVOD_CYCLE_TIME", 0) / 1000,
            stall_warning=0.0
            if flag("HOROVOD_STALL_CHECK_DISABLE")
            else number("HOROVOD_STALL_CHECK_TIME_SECONDS", cls.stall_warning),
            stall_shutdown=number("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", cls.stall_shutdown),
            timeline=environment.get("HOROVOD_TIMELINE", ""),
            mark_cycles=flag("HOROVOD_TIMELINE_MARK_CYCLES"),
            dynamic_process_sets=flag("HOROVOD_DYNAMIC_PROCESS_SETS"),
        )


def set_up_log(rank: int, environment: Mapping[str, str] = os.environ) -> None:
    """Log to stderr at HOROVOD_LOG_LEVEL, with the time unless HOROVOD_LOG_HIDE_TIME is set."""
    LOG.setLevel(_LEVELS.get(environment.get("HOROVOD_LOG_LEVEL", "").lower(), logging.WARNING))
    timestamp = "" if environment.get("HOROVOD_LOG_HIDE_TIME", "") not in {"", "0"} else "[%(asctime)s] "
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"{timestamp}[{rank}] %(levelname)s hvd: %(message)s"))
    LOG.handlers[:] = [handler]
    LOG.propagate = False

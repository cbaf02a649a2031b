"""The contract of a check: it looks at the machine it runs on, and says what it found and what mends it.

A check is a file in this package whose `create(...)` returns a `Check`; its keyword-only parameters are the check's options.
What may hang or end the process (importing torch, Horovod or mpi4py) is asked of a Python of its own, by `cli.diagnose._python`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["ok", "warning", "error"]

Wanted = Mapping[str, Mapping[str, Any]]
"""Names of checks, with the options of each."""


@dataclass(frozen=True)
class Finding:
    """`figure` is what was found, `remedy` the command or step that mends it; `facts` say the same to programs, as JSON."""

    level: Level
    figure: str
    remedy: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """`examine` raises UserError, whose text is then the finding, or OSError, where it cannot look.

    `on_hosts` says that every host of a job is to be looked at. Facts named in `alike` must be the same on all of them;
    those in `distinct` are lists, no member of which may be on two, with the remedy for it.
    """

    examine: Callable[[], Finding]
    on_hosts: bool = True
    alike: tuple[str, ...] = ()
    distinct: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """What `check` found on `host`."""

    host: str
    check: str
    finding: Finding

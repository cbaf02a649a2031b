"""The contract of a check: it examines the machine it runs on and returns a finding with a remedy.

A check is a file in `checks` whose `create(...)` returns a `Check`; its keyword-only parameters are
the options of the check. Imports that may hang or crash (torch, Horovod, mpi4py) run in a separate
process, see `cli.doctor.python`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["ok", "warning", "error"]

Selection = Mapping[str, Mapping[str, Any]]
"""The checks to run: the options of each check by its name."""


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    `figure` describes it for people and `facts` for programs, as JSON. `remedy` is the command or
    step that fixes a problem.
    """

    level: Level
    figure: str
    remedy: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A check.

    `examine` returns the finding; a UserError or OSError that it raises becomes the finding.

    `on_hosts` is True if the check runs on every host of a job. Facts named in `identical` must be
    equal on all hosts. Facts named in `distinct` are lists, and no item may occur on two hosts; the
    value is the remedy.
    """

    examine: Callable[[], Finding]
    on_hosts: bool = True
    identical: tuple[str, ...] = ()
    distinct: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """The finding of `check` on `host`."""

    host: str
    check: str
    finding: Finding

"""The contract of a runner, which starts the runs of trials.

A run trains one trial, or one fold of a trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cli.hosts.hostfile import Host


@dataclass(frozen=True)
class Placement:
    """The slots that a run has. Empty `hosts` are this machine."""

    hosts: tuple[Host, ...] = ()
    slots: tuple[str, ...] = ()
    """Names of the slots for the timeline, such as h1:0."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Variables that keep the ranks on their slots (`hvd_train/rank/affinity.py`)."""


@dataclass(frozen=True)
class Run:
    """One run to start: the YAML file with `overrides`, on `np` ranks, in `folder`.

    `resume` is the run folder or checkpoint to go on from. If it is `folder`, the run goes on in
    place. `gated` runs ask after each evaluation whether to stop (`hvd_train/rank/gate.py`).
    """

    file: Path
    overrides: tuple[str, ...]
    np: int
    folder: Path
    placement: Placement = field(default_factory=Placement)
    resume: Path | None = None
    gated: bool = False


class Running(Protocol):
    """A run that was started."""

    def poll(self) -> int | None:
        """Return the exit code of the run (docs/exit-codes.md), None while it runs; never wait."""

    def message(self) -> str:
        """Return why the run failed, in one line; valid after its end."""

    def stop(self) -> None:
        """Ask the ranks to finish the step, save and end with the exit code STOPPED; do not wait."""

    def kill(self) -> None:
        """End every process of the run at once."""


class Runner(Protocol):
    outlives: bool
    """True if runs go on after the end of the search that started them."""

    def start(self, run: Run) -> Running: ...

    def attach(self, folder: Path) -> Running | None:
        """Return the run in `folder` that an earlier search started and that went on, None if there is none."""

    def close(self) -> None:
        """End what the runner keeps between runs."""

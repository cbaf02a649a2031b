"""What a rank is doing, as its heartbeat reports it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Activity:
    """The current work of `rank`; None before training starts.

    The training loop and its clock update it, and the heartbeat's thread reads it.
    """

    rank: int = 0
    step: int | None = None
    """The optimizer steps taken so far."""
    phase: str | None = None
    turn: int | None = None
    """A number that grows with each phase."""

    def enter(self, phase: str) -> None:
        """Begin `phase`."""
        self.phase, self.turn = phase, (self.turn or 0) + 1

    def rest(self) -> None:
        """Return to the state before training. A rank at rest makes no progress and has not stalled."""
        self.step = self.phase = self.turn = None

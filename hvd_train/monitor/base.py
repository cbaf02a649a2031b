"""The contract of a metric sink: where figures go while a run is under way. Sinks live on rank 0 only."""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]


class Sink:
    """Hooks with no-op defaults; a sink is a file in this package with a `create(run)` that returns one."""

    def open(self, run: Record) -> None:
        """Before the first step: `total_steps`, `first_step`, `title`."""

    def step(self, step: int) -> None:
        """After every step: must cost nothing to speak of."""

    def train(self, record: Record) -> None:
        """Every `train.log_every` steps: step, epoch, loss, lr, samples_per_second."""

    def evaluation(self, record: Record) -> None:
        """After an evaluation: step, epoch, and the held-out metrics."""

    def close(self, summary: Record) -> None:
        """At the end of a run that was not cut short by an error."""

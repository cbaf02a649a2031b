"""The contract of a metric sink, which receives the metrics of a run on rank 0 as they are made.

The sinks in `hvd_train/monitor/sinks` are always there. `monitor.sinks` of the configuration adds
sinks of the user: `create(folder, **options)` of a target returns a `Sink`. `folder` is the run
folder, which exists once `open` is called.
"""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]
"""Values by name. A metric of several values is a list, or a list of lists."""


def numbers(record: Record) -> Record:
    """Return the values of `record` that are not lists."""
    return {name: value for name, value in record.items() if value is not None and not isinstance(value, list)}


class Sink:
    """Hooks that do nothing by default."""

    def open(self, run: Record) -> None:
        """Prepare for `run`, which has `total_steps`, `first_step` and `title`.

        Called before the first step.
        """

    def step(self, step: int) -> None:
        """Record that `step` has ended. Called after every step, so it has to be fast."""

    def train(self, record: Record) -> None:
        """Record step, epoch, loss, lr and samples_per_second.

        Called every `train.log_every` steps. Records of an agent also have env_steps,
        env_steps_per_second, and what the agent counts, such as episode_return and entropy.
        """

    def evaluation(self, record: Record) -> None:
        """Record step, epoch, env_steps of an agent, and the metrics of the held-out samples.

        Called after an evaluation.
        """

    def close(self, summary: Record) -> None:
        """Record `summary`, the content of summary.json and `folder`.

        Called at the end of a run without an error.
        """

    def abandon(self) -> None:
        """Close files. Called instead of `close` at the end of a run with an error, if the process goes on."""

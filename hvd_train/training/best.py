"""The best checkpoint of a run by a metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import broadcast_json
from hvd_train.compute.metrics.meter import Value
from hvd_train.state import checkpoint_folder
from hvd_train.state.checkpoint_folder import Best
from hvd_train.training.objective import Objective


class BestCheckpoint:
    """Remembers the best value of `objective`, which may be None, and the step that reached it."""

    def __init__(self, objective: Objective | None) -> None:
        self._objective = objective
        self.mark: Best | None = None
        """The best checkpoint so far."""

    def restore(self, folder: Path, comm: Communicator) -> None:
        """Continue from the mark among the checkpoints in `folder`, if it is of the same metric; collective.

        A run that resumes from a checkpoint of another run has no best checkpoint yet.
        """
        if self._objective is None:
            return
        found = checkpoint_folder.read_best(folder) if comm.rank == 0 else None
        values = broadcast_json(comm, vars(found) if found else None)
        if values and values["metric"] == self._objective.name:
            self.mark = Best(**values)

    def consider(self, metrics: Mapping[str, Value], step: int) -> Best | None:
        """Return the new mark if an evaluation after `step` is the best so far, else None.

        A later evaluation of the same step replaces the earlier one, as its checkpoint does.
        """
        if self._objective is None:
            return None
        value, before = self._objective.value(metrics), self.mark
        is_best = before is None or before.step == step or value > self._objective.signed(before.value)
        if math.isnan(value) or not is_best:
            return None
        self.mark = Best(step, self._objective.name, self._objective.signed(value))
        return self.mark

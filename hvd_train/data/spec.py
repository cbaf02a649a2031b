"""The description of samples that a model builder receives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Task = Literal["classification", "regression", "language", "control", "other"]


@dataclass(frozen=True)
class DataSpec:
    """The shape of one input, the number of outputs, and the task.

    Outputs are classes, target values or the vocabulary; those of the task "control" are what an agent
    chooses its actions by, and the inputs are observations. Samples of the task "other" fit none of
    ddl's models: their shape is () and their outputs are 0 where they are not known.
    """

    input_shape: tuple[int, ...]
    outputs: int
    task: Task

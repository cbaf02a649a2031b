"""The description of samples that a model builder receives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Task = Literal["classification", "regression", "ranking", "language", "seq2seq", "control", "other"]


@dataclass(frozen=True)
class DataSpec:
    """The shape of one input, the number of outputs, and the task.

    Outputs are classes, target values or the vocabulary; those of the task "control" are what an agent
    chooses its actions by, and the inputs are observations; those of the task "ranking" are scores of all
    items. Samples of the task "other" fit none of ddl's models: their shape is () and their outputs are 0
    where they are not known.
    """

    input_shape: tuple[int, ...]
    outputs: int
    task: Task
    agents: int = 0
    """Agents of an environment. Each observation begins with the number of its agent, as one of so many
    numbers that is 1; 0: it does not."""
    vocabularies: Mapping[str, int] = field(default_factory=dict)
    """For inputs that are integers, such as tokens, users and items: how many different ones there are, by
    the name of the input. The integers are below that number."""
    policy_inputs: int = 0
    """The first numbers of an observation, which alone a policy may see; 0: all."""
    target_mean: float = 0.0
    """The mean of the training targets of a regression, 0 where a source does not say. It is not saved: a
    model that begins there has it among its weights."""

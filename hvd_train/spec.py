"""What a data source says of its samples and a model builder may build on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Task = Literal["classification", "regression", "language"]


@dataclass(frozen=True)
class DataSpec:
    """One sample's input shape, the number of outputs (classes, target values or vocabulary), and the task."""

    input_shape: tuple[int, ...]
    outputs: int
    task: Task

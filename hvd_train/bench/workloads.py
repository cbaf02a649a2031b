"""The models, batches and optimizers whose step is timed.

The command imports this module, so it does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hvd_train.data.spec import DataSpec

DIGITS = DataSpec((784,), 10, "classification")


@dataclass(frozen=True)
class Workload:
    """A model of `hvd_train.models.zoo`, its options and data, and the samples per rank and step."""

    model: str
    options: Mapping[str, Any]
    spec: DataSpec
    batch: int


WORKLOADS = {
    "small": Workload("mlp", {"hidden": [128]}, DIGITS, 32),
    "mlp": Workload("mlp", {"hidden": [2048, 2048, 2048]}, DIGITS, 64),
    "conv": Workload("cnn", {"channels": [64, 128, 256]}, DataSpec((3, 32, 32), 10, "classification"), 16),
    "transformer": Workload("transformer", {"layers": 4, "width": 256}, DataSpec((64,), 8000, "language"), 4),
}

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 1e-3, "momentum": 0.9, "fused": True},
    "AdamW": {"lr": 1e-4, "fused": True},
}
"""Options by optimizer. Learning rates are low, because long training on one batch leads to
denormal gradients, which are slow."""

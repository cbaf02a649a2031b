"""Strategies in which ranks differ while they train: plain functions of a communicator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hvd_train import checkpoint
from hvd_train.comm.base import Communicator
from tests.bodies import training as body


def configuration(steps: int, **sync: Any) -> Any:
    return body.configuration(
        model={"name": "mlp", "hidden": [16], "dropout": 0.3, "target": None},
        train={"steps": steps, "epochs": None, "precision": "fp32"},
        checkpoint={"every": 7},
        optimizer={"name": "AdamW", "lr": 0.01, "momentum": None, "weight_decay": 0.1},
        sync={"fusion_mb": None, **sync},
    )


def resumed_is_bitwise_equal(comm: Communicator, folder: Path, **sync: Any) -> None:
    """Stopped after step 7, between two agreements, and gone on with, against never stopped."""
    through = body.trainer(comm, configuration(11, **sync))
    through.run()
    first = body.trainer(comm, configuration(7, **sync), checkpoints=folder / "checkpoints")
    first.strategy.finish = lambda: None  # type: ignore[method-assign]
    first.run()
    second = body.trainer(comm, configuration(11, **sync))
    second.restore(checkpoint.load(folder, comm, print))
    second.run()
    for name, value in body.parameters(through).items():
        assert torch.equal(value, body.parameters(second)[name]), name


def local_sgd_resumes(comm: Communicator, folder: Path) -> None:
    resumed_is_bitwise_equal(comm, folder, strategy="local_sgd", period=4)


RESUMING = [local_sgd_resumes]

"""The model of strategies.yaml, of which one rank's gradients drown in noise: what robust aggregates are for."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

RANK, WIDTH = "3", 960


def create(noise: float = 100.0) -> nn.Module:
    """For digits. On rank 3 normal noise is added to every gradient, `noise` times as long as that is."""
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10)
    )

    def drown(gradient: Tensor) -> Tensor:
        added = torch.randn_like(gradient)
        return gradient + added * (noise * gradient.norm() / added.norm())

    if os.environ.get("OMPI_COMM_WORLD_RANK") == RANK:
        for parameter in model.parameters():
            parameter.register_hook(drown)
    return model

"""The model of strategies.yaml with noise on the gradients of one rank, to test robust aggregation."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

RANK, WIDTH = "3", 960


def create(noise: float = 100.0) -> nn.Module:
    """Create a model for the digits.

    Rank 3 adds normal noise to every gradient, whose norm is `noise` times that of the gradient.
    """
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10)
    )

    def add_noise(gradient: Tensor) -> Tensor:
        added = torch.randn_like(gradient)
        return gradient + added * (noise * gradient.norm() / added.norm())

    if os.environ.get("OMPI_COMM_WORLD_RANK") == RANK:
        for parameter in model.parameters():
            parameter.register_hook(add_noise)
    return model

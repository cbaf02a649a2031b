"""A custom model and a custom data set, for `own_model.yaml`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset


class Residual(nn.Module):
    """A model that predicts one number from two."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
        )
        self.outer = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) + self.outer(x)
        return out


def waves(samples: int) -> tuple[TensorDataset, TensorDataset]:
    """Return training and test samples of a smooth function of two variables."""
    x = torch.rand(samples, 2, generator=torch.Generator().manual_seed(0)) * 4 - 2
    y = (torch.sin(2 * x[:, :1]) * torch.cos(x[:, 1:])).float()
    cut = samples * 4 // 5
    return TensorDataset(x[:cut], y[:cut]), TensorDataset(x[cut:], y[cut:])

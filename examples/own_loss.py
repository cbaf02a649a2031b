"""A loss with parts, a model with two outputs, and a data set of dicts, for `own_loss.yaml`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Located:
    """The mean over samples of a classification and a regression, each a part of the loss."""

    def __init__(self, distance: float) -> None:
        """`distance` is the weight of the regression."""
        self.distance = distance

    def __call__(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        kind = F.cross_entropy(outputs["logits"], batch["labels"])
        place = F.smooth_l1_loss(outputs["place"], batch["place"].to(outputs["place"].dtype))
        return {"kind": kind, "place": self.distance * place}


class TwoHeads(nn.Module):
    """Returns scores of the kind and a place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, width), nn.Tanh())
        self.kind, self.place = nn.Linear(width, 2), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.body(x)
        return {"logits": self.kind(hidden), "place": self.place(hidden)}


def points(samples: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return training and test samples."""
    x = torch.randn(samples, 4, generator=torch.Generator().manual_seed(0))
    every = [{"x": row, "labels": int(row[0] > row[1]), "place": row[2:] / 2} for row in x]
    cut = samples * 4 // 5
    return every[:cut], every[cut:]

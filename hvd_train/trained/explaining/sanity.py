"""Does a map depend on the trained weights? (Adebayo et al., "Sanity Checks for Saliency Maps", 2018)"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from hvd_train.data.seeding import sample_seed

SIMILAR = 0.5
"""The mean rank correlation from which maps hardly depend on the weights."""


@torch.no_grad()
def randomised(model: nn.Module, seed: int) -> nn.Module:
    """Return a copy of the model in which the values of each parameter are permuted at random.

    Each tensor keeps its distribution, so scores stay of the same size in a model of any kind.
    """
    other = copy.deepcopy(model)
    for number, parameter in enumerate(other.parameters()):
        generator = torch.Generator().manual_seed(sample_seed(seed, number))
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return other


def rank_correlation(x: Tensor, y: Tensor) -> float | None:
    """Return Spearman's correlation of two maps; None if one of them has equal values only."""
    a, b = (_ranks(values.flatten()) for values in (x, y))
    a, b = a - a.mean(), b - b.mean()
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size else None


def _ranks(values: Tensor) -> Tensor:
    """Return the rank of each value in float64; equal values have their mean rank."""
    _, places, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: Tensor = last - (counts - 1) / 2
    return ranks[places]

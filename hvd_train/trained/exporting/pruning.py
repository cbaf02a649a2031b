"""Sets the smallest weights of a model to zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hvd_train.errors import UserError

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def prune_(model: nn.Module, sparsity: float) -> float:
    """Set the share `sparsity` of the weights to zero, those of the smallest magnitude in the model.

    Weights are those of linear and convolutional layers (Han et al., arXiv 1506.02626); biases,
    norms and embeddings stay. Return the share of zeros that was reached, which is larger if the
    model had more zeros. Raise UserError if there is no such layer.
    """
    weights = _weights(model)
    if not weights:
        raise UserError("--prune: the model has no linear or convolutional layer")
    magnitudes = torch.cat([weight.abs().flatten() for weight in weights])
    smallest = magnitudes.sort(stable=True).indices[: round(sparsity * len(magnitudes))]
    kept = torch.ones_like(magnitudes, dtype=torch.bool)
    kept[smallest] = False
    for weight, mask in zip(weights, kept.split([weight.numel() for weight in weights]), strict=True):
        weight.masked_fill_(~mask.view_as(weight), 0)
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / len(magnitudes)


def _weights(model: nn.Module) -> list[Tensor]:
    """Return each weight once; one that an embedding shares with the output layer stays out."""
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    layers = [module for module in model.modules() if isinstance(module, KINDS)]
    found = dict.fromkeys(
        p for layer in layers for name, p in layer.named_parameters(recurse=False) if name == "weight"
    )
    return [weight for weight in found if weight not in tables]

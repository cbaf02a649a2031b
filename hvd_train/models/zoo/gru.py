"""Gated recurrent units over sequences of numbers or tokens, then a linear layer."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from hvd_train.config.options import Annotated, Fraction, PerStep, PositiveInt
from hvd_train.models.base import DataSpec
from hvd_train.models.sequences import Frames, Head, steps, with_tokens


class Layer(nn.Module):
    """Maps `(batch, time, features)` to the states `(batch, time, width)` of one or both directions.

    The backward direction begins at the last step of each sequence, so padding does not enter.
    """

    def __init__(self, features: int, width: int, bidirectional: bool) -> None:
        super().__init__()
        self.forwards = nn.GRU(features, width, batch_first=True)
        self.backwards = nn.GRU(features, width, batch_first=True) if bidirectional else None

    def forward(self, x: Tensor, reverse: Tensor) -> Tensor:
        states: Tensor = self.forwards(x)[0]
        if self.backwards is None:
            return states
        backwards = self.backwards(_taken(x, reverse))[0]
        return torch.cat([states, _taken(backwards, reverse)], -1)


class GRU(nn.Module):
    """Maps sequences `(batch, time, features)` and a mask `(batch, time)` to the outputs of `Head`."""

    def __init__(self, layers: list[Layer], dropout: float, head: Head) -> None:
        super().__init__()
        self.layers, self.dropout, self.head = nn.ModuleList(layers), nn.Dropout(dropout), head

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor | Frames:
        x, mask = steps(x, mask)
        reverse = _reverse(mask)
        for layer in self.layers:
            x = self.dropout(layer(x, reverse))
        outputs: Tensor | Frames = self.head(x, mask)
        return outputs


def create(
    spec: DataSpec,
    *,
    layers: Annotated[PositiveInt, "layers, one above another"] = 1,
    width: Annotated[PositiveInt, "size of the state of a direction, and of the embedding of tokens"] = 64,
    bidirectional: Annotated[bool, "read sequences backwards too, and join both states of each step"] = False,
    dropout: Annotated[Fraction, "fraction of the outputs of each layer that is zeroed in training"] = 0.0,
    per_step: PerStep = False,
) -> nn.Module:
    """Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", 2014, and the mean of
    all states.
    """

    def make(features: int) -> nn.Module:
        states = width * (1 + bidirectional)
        sizes = [features, *[states] * layers]
        made = [Layer(before, width, bidirectional) for before, _ in pairwise(sizes)]
        return GRU(made, dropout, Head(states, spec.outputs, per_step))

    return with_tokens(spec, "gru", width, make)


def _reverse(mask: Tensor) -> Tensor:
    """Return where each step of the reversed sequences `(batch, time)` comes from. Padding stays."""
    at = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, mask.sum(1, keepdim=True) - 1 - at, at)


def _taken(x: Tensor, at: Tensor) -> Tensor:
    """Return the steps of `x` at the positions `at` `(batch, time)`."""
    return x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))

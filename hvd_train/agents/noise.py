"""Random numbers of an agent, which belong to an environment and an epoch, not to a rank.

So the same actions are drawn whatever the number of ranks is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hvd_train.data.seeding import sample_seed

_ACTING, _ORDER, _LEARNING = 1, 2, 4
"""Streams of random numbers."""


@dataclass(frozen=True)
class Noise:
    """`width` numbers for each agent and step, of one kind.

    `uniform` is in [0, 1), `normal` has variance 1, and the largest of logits plus `gumbel` is a
    sample of the categorical distribution that they describe.
    """

    kind: Literal["uniform", "normal", "gumbel"]
    width: int


def draw(noise: Noise, seed: int, epoch: int, rows: Sequence[int], steps: int) -> Tensor:
    """Return the noise of the agents `rows` in an epoch, float64 `(steps, rows, width)`."""
    drawn = torch.stack([_drawn(noise, (seed, _ACTING, row, epoch), steps) for row in rows], dim=1)
    return drawn if noise.kind != "gumbel" else -torch.log(-torch.log(drawn.clamp_(1e-300, 1 - 1e-16)))


def order(seed: int, epoch: int, rows: Sequence[int], steps: int, passes: int) -> Tensor:
    """Return the positions of samples in `passes` passes over an epoch, int64.

    Sample `step * len(rows) + i` is of row i. Every row is permuted by itself, and consecutive
    positions are of consecutive rows: batches then hold the same samples, however many ranks there are.
    """
    number = len(rows)
    parts = []
    of_rows = [_generator(seed, _ORDER, row, epoch) for row in rows]
    for _ in range(passes):
        permuted = [torch.randperm(steps, generator=generator) for generator in of_rows]
        parts.append((torch.stack(permuted, dim=1) * number + torch.arange(number)).reshape(-1))
    return torch.cat(parts)


def learning(seed: int, epoch: int, rows: Sequence[int]) -> torch.Generator:
    """Return random numbers for what the agents `rows` of one rank learn in an epoch."""
    return _generator(seed, _LEARNING, rows[0], epoch)


def _drawn(noise: Noise, key: tuple[int, ...], steps: int) -> Tensor:
    draw_ = torch.randn if noise.kind == "normal" else torch.rand
    return draw_(steps, noise.width, dtype=torch.float64, generator=_generator(*key))


def _generator(*key: int) -> torch.Generator:
    return torch.Generator().manual_seed(sample_seed(*key))

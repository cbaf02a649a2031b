"""Who sends to whom in a step of gossip, and the mixing weights that this makes: pure functions, equal on every rank.

A step is some rounds; in each of them every rank sends to one rank and hears from one, itself included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Round = tuple[int, ...]
"""The rank that each rank sends to: a permutation."""

Topology = Callable[[int, int, int], list[Round]]
"""The rounds among `size` ranks in `step`, from a `seed`."""


def ring(size: int, step: int, seed: int) -> list[Round]:
    """To both neighbours."""
    return list(dict.fromkeys([_shift(size, 1), _shift(size, -1)]))


def one_way_ring(size: int, step: int, seed: int) -> list[Round]:
    return [_shift(size, 1)]


def exponential(size: int, step: int, seed: int) -> list[Round]:
    """To the rank 1, 2, 4, ... places on, in turn: the mean is reached in log2(size) steps where that is whole."""
    return [_shift(size, 1 << step % max(1, (size - 1).bit_length()))]


def pairs(size: int, step: int, seed: int) -> list[Round]:
    """All ranks in pairs at random; of an odd number one stays alone."""
    order = _random(size, step, seed)
    partners = list(range(size))
    for a, b in zip(order[::2], order[1::2], strict=False):
        partners[a], partners[b] = b, a
    return [tuple(partners)]


def arrows(size: int, step: int, seed: int) -> list[Round]:
    """To two ranks at random, or to fewer where a draw is the rank itself."""
    return [_random(size, 2 * step + draw, seed) for draw in range(2)]


UNDIRECTED: dict[str, Topology] = {"ring": ring, "exponential": exponential, "random": pairs}
DIRECTED: dict[str, Topology] = {"ring": one_way_ring, "exponential": exponential, "random": arrows}


def shares(rounds: Sequence[Round]) -> list[float]:
    """The part of its own that each rank sends in a round to another rank, and keeps: 1 / (1 + how often it sends)."""
    return [1 / (1 + sum(to[rank] != rank for to in rounds)) for rank in range(len(rounds[0]))]


def weights(rounds: Sequence[Round]) -> Tensor:
    """W, of which W[i, j] is the weight of rank j's parameters in those of rank i; columns sum to one. float64."""
    matrix = torch.diag(torch.tensor(shares(rounds), dtype=torch.float64))
    for to in rounds:
        for j, share in enumerate(shares(rounds)):
            if to[j] != j:
                matrix[to[j], j] += share
    return matrix


def _shift(size: int, by: int) -> Round:
    return tuple((rank + by) % size for rank in range(size))


def _random(size: int, number: int, seed: int) -> Round:
    return tuple(np.random.default_rng([seed, number]).permutation(size).tolist())

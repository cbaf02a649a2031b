"""Gossip topologies: the ranks that each rank sends to in a step, and the mixing matrix.

All functions are pure and give equal results on every rank. A step consists of rounds. In each
round every rank sends to one rank and receives from one rank, possibly itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Round = tuple[int, ...]
"""The rank that each rank sends to: a permutation."""

Topology = Callable[[int, int, int], list[Round]]
"""(size, step, seed) -> the rounds of `step` among `size` ranks."""


def ring(size: int, step: int, seed: int) -> list[Round]:
    """Send to both neighbours."""
    return list(dict.fromkeys([_shift(size, 1), _shift(size, -1)]))


def one_way_ring(size: int, step: int, seed: int) -> list[Round]:
    """Send to the next rank."""
    return [_shift(size, 1)]


def exponential(size: int, step: int, seed: int) -> list[Round]:
    """Send to the rank 1, 2, 4, ... places on, in turn.

    log2(size) steps reach the mean if that is a whole number.
    """
    return [_shift(size, 1 << step % max(1, (size - 1).bit_length()))]


def random_pairs(size: int, step: int, seed: int) -> list[Round]:
    """Exchange in random pairs. If the number of ranks is odd, one rank has no partner."""
    order = _random(size, step, seed)
    partners = list(range(size))
    for a, b in zip(order[::2], order[1::2], strict=False):
        partners[a], partners[b] = b, a
    return [tuple(partners)]


def random_targets(size: int, step: int, seed: int) -> list[Round]:
    """Send to two random ranks, or to fewer if the rank draws itself."""
    return [_random(size, 2 * step + draw, seed) for draw in range(2)]


UNDIRECTED: dict[str, Topology] = {"ring": ring, "exponential": exponential, "random": random_pairs}
DIRECTED: dict[str, Topology] = {"ring": one_way_ring, "exponential": exponential, "random": random_targets}


def shares(rounds: Sequence[Round]) -> list[float]:
    """Return the share of its own that each rank keeps, and sends in a round.

    It is 1 / (1 + the number of ranks that the rank sends to).
    """
    return [1 / (1 + sum(to[rank] != rank for to in rounds)) for rank in range(len(rounds[0]))]


def weights(rounds: Sequence[Round]) -> Tensor:
    """Return the mixing matrix W in float64.

    W[i, j] is the weight of rank j in rank i; columns sum to one.
    """
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

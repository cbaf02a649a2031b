"""Iterable data without an end, for `own_iterable.yaml`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, TensorDataset


class Simulation(IterableDataset[tuple[Tensor, Tensor]]):
    """Yields positions, and where a damped pendulum that starts there is one step later."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        while True:
            state = 2 * torch.rand(2, generator=generator) - 1
            yield state, step(state)


def step(state: Tensor) -> Tensor:
    """Return (angle, speed) after a tenth of a second."""
    angle, speed = state.unbind(-1)
    faster = speed - 0.1 * (9.81 * torch.sin(angle) + 0.2 * speed)
    return torch.stack([angle + 0.1 * faster, faster], -1)


def simulation() -> tuple[Simulation, TensorDataset]:
    """Return endless training samples, and 200 held-out ones."""
    states = 2 * torch.rand(200, 2, generator=torch.Generator().manual_seed(1)) - 1
    return Simulation(), TensorDataset(states, step(states))

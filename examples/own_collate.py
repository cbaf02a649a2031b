"""Sequences of unequal length and a collate function for them, for `own_collate.yaml`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

Sample = tuple[Tensor, Tensor]


def collate(samples: list[Sample]) -> dict[str, Tensor]:
    """Return the padded sequences, their lengths and their classes."""
    sequences, labels = zip(*samples, strict=True)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return {
        "sequence": pad_sequence(list(sequences), batch_first=True),
        "lengths": lengths,
        "label": torch.stack(labels),
    }


class Recurrent(nn.Module):
    """Reads each sequence up to its own length."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.read, self.decide = nn.GRU(1, width, batch_first=True), nn.Linear(width, 2)

    def forward(self, sequence: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(sequence[..., None], lengths.cpu(), batch_first=True, enforce_sorted=False)
        out: Tensor = self.decide(self.read(packed)[1][-1])
        return out


def walks(samples: int) -> tuple[list[Sample], list[Sample]]:
    """Return training and test samples: random walks of 5 to 30 steps, and whether they rise."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(samples):
        length = int(torch.randint(5, 31, (), generator=generator))
        walk = torch.randn(length, generator=generator).cumsum(0)
        found.append((walk, (walk[-1] > 0).long()))
    cut = samples * 4 // 5
    return found[:cut], found[cut:]

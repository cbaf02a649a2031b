"""Spoken digits, sequences of MFCC vectors of unequal lengths, with a convolutional network."""

from __future__ import annotations

import math
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from benchmarks.plain.report import arguments, batches, held_out, report

BATCH = 32


class Block(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv1d(before, after, 5, padding=2), nn.LayerNorm(after)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return half as many steps of `x` (n, time, features), and the mask of those in a sequence."""
        x = self.norm(self.convolution(x.transpose(1, 2)).transpose(1, 2)).relu() * mask[..., None]
        return functional.max_pool1d(x.transpose(1, 2), 2, ceil_mode=True).transpose(1, 2), mask[:, ::2]


class Network(nn.Module):
    def __init__(self, features: int, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.first, self.second = Block(features, width), Block(width, width)
        self.last = nn.Linear(width, classes)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return logits of `x` (n, time, features), whose sequences have `lengths`."""
        x, mask = self.second(*self.first(x, torch.arange(x.shape[1]) < lengths[:, None]))
        return self.last(x.sum(1) / mask.sum(1, keepdim=True))


def main() -> None:
    options = arguments(__doc__, epochs=10)
    with np.load(options.data) as arrays:
        lengths, y = torch.from_numpy(arrays["lengths"]), torch.from_numpy(arrays["y"])
        sequences = torch.from_numpy(arrays["X"]).split(lengths.tolist())
    train, test = held_out(len(y), 0.2, options)
    values = torch.cat([sequences[row] for row in train.tolist()])
    mean, deviation = values.mean(0), values.std(0)
    sequences = [(sequence - mean) / deviation for sequence in sequences]

    def batch(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return pad_sequence([sequences[row] for row in rows.tolist()], batch_first=True), lengths[rows], y[rows]

    model = Network(values.shape[1])
    steps = options.limit or options.epochs * math.ceil(len(train) / BATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    done = 0
    while done < steps:
        for rows in islice(batches(train, lengths, BATCH, pool=20), steps - done):
            inputs, many, targets = batch(rows)
            loss = functional.cross_entropy(model(inputs, many), targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            done += 1
    model.eval()
    right = 0
    with torch.no_grad():
        for rows in test[lengths[test].argsort()].split(128):
            inputs, many, targets = batch(rows)
            right += (model(inputs, many).argmax(1) == targets).sum().item()
    report({"accuracy": right / len(test)}, done)


if __name__ == "__main__":
    main()

"""Spoken digits, sequences of MFCC vectors of unequal lengths, with a convolutional network."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from benchmarks.plain.report import arguments, held_out, report

BATCH = 32


class Network(nn.Module):
    def __init__(self, features: int, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.first = nn.Conv1d(features, width, 5, padding=2)
        self.second = nn.Conv1d(width, width, 5, padding=2)
        self.last = nn.Linear(width, classes)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return logits of `x` (n, time, features), whose sequences have `lengths`."""
        mask = (torch.arange(x.shape[1]) < lengths[:, None]).unsqueeze(1)
        hidden = self.first(x.transpose(1, 2)).relu() * mask
        hidden = self.second(hidden).relu() * mask
        return self.last(hidden.sum(2) / lengths[:, None])


def main() -> None:
    options = arguments(__doc__, epochs=15)
    with np.load(options.data) as arrays:
        lengths, y = torch.from_numpy(arrays["lengths"]), torch.from_numpy(arrays["y"])
        sequences = torch.from_numpy(arrays["X"]).split(lengths.tolist())
    train, test = held_out(len(y), 0.2)
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
        for rows in train[torch.randperm(len(train))].split(BATCH)[: steps - done]:
            inputs, many, targets = batch(rows)
            loss = functional.cross_entropy(model(inputs, many), targets)
            optimizer.zero_grad()
            loss.backward()
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

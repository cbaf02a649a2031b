"""Handwritten digits (5,000 images) with a convolutional network, with or without augmentation."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.plain.report import arguments, held_out, report

BATCH = 64


def network() -> nn.Module:
    return nn.Sequential(*_block(1, 16), *_block(16, 32), nn.Flatten(), nn.Linear(32 * 7 * 7, 10))


def _block(before: int, after: int) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
    return [convolution, nn.GroupNorm(8, after), nn.ReLU(), nn.MaxPool2d(2)]


def shifted(x: Tensor, pixels: int = 2) -> Tensor:
    """Shift each image of `x` (n, 1, height, width) at random, with zeros from outside."""
    many, _, height, width = x.shape
    padded = functional.pad(x, (pixels,) * 4)
    rows = torch.randint(2 * pixels + 1, (many, 1)) + torch.arange(height)
    columns = torch.randint(2 * pixels + 1, (many, 1)) + torch.arange(width)
    return padded[torch.arange(many)[:, None, None], 0, rows[:, :, None], columns[:, None]].unsqueeze(1)


def main() -> None:
    options = arguments(__doc__, epochs=15)
    with np.load(options.data) as arrays:
        x = torch.from_numpy(arrays["x"]).float().div(255)
        y = torch.from_numpy(arrays["y"])
    train, test = held_out(len(x), 0.2, options)
    model = network()
    steps = options.limit or options.epochs * math.ceil(len(train) / BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    done = 0
    while done < steps:
        for rows in train[torch.randperm(len(train))].split(BATCH)[: steps - done]:
            inputs = shifted(x[rows]) if options.augment else x[rows]
            loss = functional.cross_entropy(model(inputs), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
    model.eval()
    with torch.no_grad():
        right = sum((model(x[rows]).argmax(1) == y[rows]).sum().item() for rows in test.split(256))
    report({"accuracy": right / len(test)}, done)


if __name__ == "__main__":
    main()

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
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 10),
    )  # fmt: skip


def augmented(x: Tensor, degrees: float = 10.0, pixels: float = 2.0) -> Tensor:
    """Rotate and shift each image of `x` (n, 1, 28, 28) at random."""
    angle = (torch.rand(len(x)) * 2 - 1) * math.radians(degrees)
    shift = (torch.rand(len(x), 2) * 2 - 1) * pixels / (x.shape[-1] / 2)
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = functional.affine_grid(matrix, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, align_corners=False)


def main() -> None:
    options = arguments(__doc__, epochs=15)
    with np.load(options.data) as arrays:
        x = torch.from_numpy(arrays["x"]).float().div(255).unsqueeze(1)
        y = torch.from_numpy(arrays["y"])
    train, test = held_out(len(x), 0.2)
    model = network()
    steps = options.limit or options.epochs * math.ceil(len(train) / BATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    done = 0
    while done < steps:
        for rows in train[torch.randperm(len(train))].split(BATCH)[: steps - done]:
            inputs = augmented(x[rows]) if options.augment else x[rows]
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

"""Linear regression of 16 made-up features."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from benchmarks.plain.report import arguments, held_out, report

BATCH = 64
SAMPLES, FEATURES = 1024, 16


def main() -> None:
    options = arguments(__doc__, epochs=10)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, FEATURES, generator=generator)
    weight = torch.randn(FEATURES, 1, generator=generator) / math.sqrt(FEATURES)
    y = x @ weight + 0.1 * torch.randn(SAMPLES, 1, generator=generator)
    train, test = held_out(len(x), 0.2)
    model = nn.Linear(FEATURES, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps, done = options.limit or options.epochs * math.ceil(len(train) / BATCH), 0
    while done < steps:
        for rows in train[torch.randperm(len(train))].split(BATCH)[: steps - done]:
            loss = functional.mse_loss(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
    with torch.no_grad():
        error = functional.mse_loss(model(x[test]), y[test]).item()
    report({"loss": error}, done)


if __name__ == "__main__":
    main()

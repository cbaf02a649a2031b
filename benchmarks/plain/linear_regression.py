"""The line through points of a file by gradient descent."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.plain.report import arguments, held_out, report

BATCH = 64


def main() -> None:
    options = arguments(__doc__, epochs=40)
    points = torch.from_numpy(np.loadtxt(options.data, delimiter=",", skiprows=1, dtype=np.float32))
    x, y = points[:, :-1], points[:, -1:]
    train, test = held_out(len(x), 0.2, options)
    x = (x - x[train].mean(0)) / x[train].std(0, correction=0)
    model = nn.Linear(x.shape[1], 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
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

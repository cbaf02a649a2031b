"""Ratings of films (MovieLens 100k) by matrix factorisation with biases."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.plain.report import arguments, held_out, report

BATCH = 256


class Factorisation(nn.Module):
    def __init__(self, users: int, items: int, width: int, mean: float) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(users, width), nn.Embedding(items, width)
        self.user_bias, self.item_bias = nn.Embedding(users, 1), nn.Embedding(items, 1)
        self.mean = mean
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.1)
        for table in (self.user_bias, self.item_bias):
            nn.init.zeros_(table.weight)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        biases = self.user_bias(user) + self.item_bias(item)
        return (self.user(user) * self.item(item)).sum(1) + biases.squeeze(1) + self.mean


def main() -> None:
    options = arguments(__doc__, epochs=8)
    table = np.loadtxt(options.data, delimiter=",", skiprows=1)
    user, item = (torch.from_numpy(np.unique(table[:, column], return_inverse=True)[1]) for column in (0, 1))
    rating = torch.from_numpy(table[:, 2]).float()
    train, test = held_out(len(rating), 0.2, options)
    model = Factorisation(int(user.max()) + 1, int(item.max()) + 1, 32, rating[train].mean().item())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=3e-4)
    steps, done = options.limit or options.epochs * math.ceil(len(train) / BATCH), 0
    while done < steps:
        for rows in train[torch.randperm(len(train))].split(BATCH)[: steps - done]:
            loss = functional.mse_loss(model(user[rows], item[rows]), rating[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
    with torch.no_grad():
        error = functional.mse_loss(model(user[test], item[test]), rating[test]).item()
    report({"rmse": math.sqrt(error)}, done)


if __name__ == "__main__":
    main()

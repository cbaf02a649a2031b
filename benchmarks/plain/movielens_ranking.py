"""Films that a user watches (MovieLens 100k, implicit feedback) by matrix factorisation: recall@10, NDCG@10."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.plain.report import arguments, report

BATCH = 256
NEGATIVES = 2
TOP = 10


class Factorisation(nn.Module):
    def __init__(self, users: int, items: int, width: int = 64) -> None:
        super().__init__()
        self.user, self.item, self.bias = nn.Embedding(users, width), nn.Embedding(items, width), nn.Embedding(items, 1)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.1)
        nn.init.zeros_(self.bias.weight)

    def forward(self, user: Tensor, items: Tensor) -> Tensor:
        """Return the scores of `items` (n, k) for each of `user` (n)."""
        return torch.einsum("nd,nkd->nk", self.user(user), self.item(items)) + self.bias(items).squeeze(2)


def main() -> None:
    options = arguments(__doc__, epochs=7)
    table = np.loadtxt(options.data, delimiter=",", skiprows=1)
    user, item = (torch.from_numpy(np.unique(table[:, column], return_inverse=True)[1]) for column in (0, 1))
    users, items = int(user.max()) + 1, int(item.max()) + 1
    train, test = held_out_of_each(user, 0.2)
    watched = torch.zeros(users, items, dtype=torch.bool)
    watched[user[train], item[train]] = True
    model = Factorisation(users, items)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-5)
    steps, done = options.limit or options.epochs * math.ceil(len(train) / BATCH), 0
    while done < steps:
        for rows in train[torch.randperm(len(train))].split(BATCH)[: steps - done]:
            negative = torch.randint(items, (len(rows), NEGATIVES))
            scores = model(user[rows], torch.cat([item[rows, None], negative], 1))
            loss = functional.softplus(scores[:, 1:] - scores[:, :1]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
    with torch.no_grad():
        scores = model.user.weight @ model.item.weight.T + model.bias.weight.T
    relevant = torch.zeros_like(watched)
    relevant[user[test], item[test]] = True
    report(ranking(scores.masked_fill(watched, -torch.inf), relevant), done)


def held_out_of_each(user: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Return random positions of training and test samples, `fraction` of those of each user held out."""
    order = torch.randperm(len(user), generator=torch.Generator().manual_seed(0))
    parts = [order[user[order] == one] for one in user.unique()]
    cuts = [len(part) - round(len(part) * fraction) for part in parts]
    pairs = list(zip(parts, cuts, strict=True))
    return torch.cat([part[:cut] for part, cut in pairs]), torch.cat([part[cut:] for part, cut in pairs])


def ranking(scores: Tensor, relevant: Tensor) -> dict[str, float]:
    """Return recall and NDCG of the best items, each the mean over users."""
    hits = relevant.gather(1, scores.topk(TOP).indices).double()
    many = relevant.sum(1)
    gains = 1 / torch.arange(2, TOP + 2).double().log2()
    ideal = torch.cat([gains.new_zeros(1), gains.cumsum(0)])[many.clamp(max=TOP)]
    return {"recall_at_10": (hits.sum(1) / many).mean().item(), "ndcg_at_10": (hits @ gains / ideal).mean().item()}


if __name__ == "__main__":
    main()

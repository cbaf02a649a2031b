"""No communication while training: every rank makes a model of its own, and at the end they become one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train import model_state
from hvd_train.errors import UserError
from hvd_train.options import Annotated, Literal
from hvd_train.sync._flat import copy_
from hvd_train.sync._replicas import Replicas
from hvd_train.sync.base import Context

ASK = 50
"""Steps between two questions whether to stop: a signal is not to wait for the end of a long epoch."""

Merge = Literal["mean", "weighted", "greedy"]


class Independent(Replicas):
    """w_i goes by its own gradients to the end; then w <- mean(w_i), or the mean by samples, or a greedy soup of them
    (Wortsman et al., arXiv 2203.05482).

    Until then an evaluation shows the mean of what the ranks' own models reach. Running statistics are merged as parameters are.
    """

    def __init__(self, context: Context, merge: Merge) -> None:
        super().__init__(context)
        self.evaluates_own = True
        self._merge, self._soup = merge, list(range(self.comm.size))
        self._samples = torch.zeros((), dtype=torch.float64)
        """That this rank has trained on."""

    def start(self, model: nn.Module) -> None:
        if self._merge == "greedy" and self.score is None:
            raise UserError("sync.merge: greedy needs held-out samples, and data has none; take mean or weighted")
        super().start(model)
        self._statistics = list(model_state.statistics(model).values())

    def meets(self, step: int) -> bool:
        return (step + 1) % ASK == 0

    def on_loss(self, loss: float, samples: int) -> None:
        self._samples += samples

    def finish(self) -> bool:
        super().finish()
        self.evaluates_own = False
        return True

    def average_(self) -> None:
        tensors = [*self.flat.tensors, *self._statistics]
        if self._merge == "greedy":
            self._soup = self._best_(tensors)
            return
        share = 1 / self.comm.size if self._merge == "mean" else self._share()
        for tensor in tensors:
            tensor *= share
            self.comm.all_reduce_(tensor, "sum")

    def _share(self) -> float:
        """This rank's part of the samples of all."""
        total = self._samples.clone()
        self.comm.all_reduce_(total, "sum")
        return float(self._samples / total)

    def _best_(self, tensors: list[Tensor]) -> list[int]:
        """Replace `tensors` by the soup; whose they are. From the best on, each model joins with which the mean is no worse."""
        assert self.score is not None
        own, scores = [t.clone() for t in tensors], []
        for rank in range(self.comm.size):
            self._show_(tensors, own, rank)
            scores.append(self.score())
        members: list[int] = []
        soup, best = [torch.zeros_like(t) for t in tensors], -math.inf
        for rank in sorted(range(self.comm.size), key=lambda r: -scores[r]):
            self._show_(tensors, own, rank)
            for tensor, mean in zip(tensors, soup, strict=True):
                torch.lerp(mean, tensor, 1 / (len(members) + 1), out=tensor)
            score = self.score()
            if score >= best:
                best = score
                members.append(rank)
                copy_(soup, tensors)
        copy_(tensors, soup)
        return members

    def _show_(self, tensors: list[Tensor], own: list[Tensor], rank: int) -> None:
        """Let `tensors` be what is `rank`'s own, on all ranks."""
        copy_(tensors, own)
        for tensor in tensors:
            self.comm.broadcast_(tensor, rank)

    def summary(self) -> dict[str, Any]:
        return {**super().summary(), "soup": self._soup}

    def rank_state(self) -> dict[str, Tensor]:
        return {**super().rank_state(), "samples": self._samples.clone()}

    def go_on_alone(self, state: dict[str, Tensor]) -> None:
        super().go_on_alone(state)
        self._samples = state["samples"]


def create(
    context: Context,
    *,
    merge: Annotated[
        Literal["mean", "weighted", "greedy"],
        "of all models at the end: their mean, by samples; greedy: of those whose mean does best on held-out samples",
    ] = "mean",
) -> Independent:
    return Independent(context, merge)

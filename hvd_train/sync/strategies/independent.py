"""Every rank trains its own model without communication; at the end the models are merged."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.config.options import Annotated, Literal
from hvd_train.errors import UserError
from hvd_train.gradients.optimizer import Build, ModelOptimizer
from hvd_train.state import model_state
from hvd_train.sync.base import Context, SyncStrategy
from hvd_train.sync.membership import every
from hvd_train.sync.replicas.flat import copy_
from hvd_train.sync.replicas.replica_set import ReplicaSet, refuse_compression
from hvd_train.sync.scale import OwnMean
from hvd_train.sync.view import View

STOP_EVERY = 50
"""Steps between two agreements on stopping: a signal must not wait for the end of a long epoch."""

Merge = Literal["mean", "weighted", "greedy"]


class Ingredients(View):
    """The inputs of the merged model: this rank's samples, and the ranks whose models are in it."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.ranks = list(range(ranks))
        self.scores: list[float] = []
        """The score of each rank's own model before the merge, if there are held-out samples."""
        self.samples = torch.zeros((), dtype=torch.float64)
        """The number of samples that this rank has trained on."""

    def summary(self) -> dict[str, Any]:
        best_first = sorted(range(len(self.scores)), key=lambda rank: -self.scores[rank])
        league = [{"rank": rank, "score": self.scores[rank]} for rank in best_first]
        return {"soup": self.ranks, **({"league": league} if league else {})}

    def rank_state(self) -> dict[str, Tensor]:
        return {"samples": self.samples.clone()}

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        self.samples = state["samples"]


def member_scores(tensors: list[Tensor], comm: Communicator, score: Callable[[], float]) -> list[float]:
    """Return what `score` returns for the own `tensors` of each rank, in rank order; collective."""
    own, scores = [t.clone() for t in tensors], []
    with comm.aside():
        for rank in range(comm.size):
            _show_(tensors, own, comm, rank)
            scores.append(score())
    copy_(tensors, own)
    return scores


def greedy_soup_(
    tensors: list[Tensor], comm: Communicator, score: Callable[[], float], scores: list[float]
) -> list[int]:
    """Replace `tensors` by a greedy soup of the ranks' own tensors; collective.

    Wortsman et al., arXiv 2203.05482. Starts from the best model by `scores`, those of all ranks'
    tensors. In descending order of their scores, each model joins if the mean with it scores no
    worse by `score`, which scores the present `tensors`. Returns the ranks in the soup.
    """
    own = [t.clone() for t in tensors]
    members: list[int] = []
    soup, best = [torch.zeros_like(t) for t in tensors], -math.inf
    for rank in sorted(range(comm.size), key=lambda r: -scores[r]):
        _show_(tensors, own, comm, rank)
        for tensor, mean in zip(tensors, soup, strict=True):
            torch.lerp(mean, tensor, 1 / (len(members) + 1), out=tensor)
        reached = score()
        if reached >= best:
            best = reached
            members.append(rank)
            copy_(soup, tensors)
    copy_(tensors, soup)
    return members


def _show_(tensors: list[Tensor], own: list[Tensor], comm: Communicator, rank: int) -> None:
    """Set `tensors` to the `own` tensors of `rank`, on all ranks."""
    copy_(tensors, own)
    for tensor in tensors:
        comm.broadcast_(tensor, rank)


class Independent(SyncStrategy):
    """w_i follows its own gradients to the end.

    Then each model is scored on all held-out samples, and w <- mean(w_i), a mean weighted by samples,
    or a greedy soup. Until then an evaluation shows the mean of the metrics of the ranks' own models.
    Running statistics are merged like parameters.
    """

    learns_alone = True

    def __init__(self, context: Context, merge: Merge) -> None:
        comm = context.comm
        self._ingredients = Ingredients(comm.size)
        self._replicas = ReplicaSet(comm, [self._ingredients], evaluates_own=True)
        members = self._replicas.members(every(STOP_EVERY))
        super().__init__(context, members=members, gradient_scale=OwnMean(comm), view=self._replicas)
        refuse_compression(context, "independent")
        if merge == "greedy" and context.score is None:
            raise UserError("sync.merge: greedy needs held-out samples, and data has none; take mean or weighted")
        self._merge, self._score = merge, context.score

    def optimizer(self, model: nn.Module, build: Build) -> ModelOptimizer:
        return self._replicas.use(super().optimizer(model, build))

    def start(self, model: nn.Module) -> None:
        super().start(model)
        self._replicas.start(model)
        self._statistics = list(model_state.statistics(model).values())

    def on_loss(self, loss: float, samples: float) -> None:
        self._ingredients.samples += samples

    def on_gradients(self, step: int) -> None:
        self._replicas.refresh()

    def on_parameters(self, step: int) -> None:
        self._replicas.step()

    def finish(self) -> bool:
        if self._replicas.diverged:
            self._replicas.average(self._average_)
        return True

    def _average_(self) -> None:
        tensors = [*self._replicas.flat.tensors, *self._statistics]
        scores = member_scores(tensors, self.comm, self._score) if self._score else []
        self._ingredients.scores = scores
        if self._merge == "greedy" and self._score:
            self._ingredients.ranks = greedy_soup_(tensors, self.comm, self._score, scores)
            return
        share = 1 / self.comm.size if self._merge == "mean" else self._share()
        for tensor in tensors:
            tensor *= share
            self.comm.all_reduce_(tensor, "sum")

    def _share(self) -> float:
        """Return this rank's share of the samples of all ranks; collective."""
        samples = self._ingredients.samples
        total = samples.clone()
        self.comm.all_reduce_(total, "sum")
        return float(samples / total)


def create(
    context: Context,
    *,
    merge: Annotated[
        Literal["mean", "weighted", "greedy"],
        "merges all models at the end: mean; weighted by samples; greedy: the models whose mean scores best on held-out samples",
    ] = "mean",
) -> Independent:
    return Independent(context, merge)

"""In every step each rank averages its parameters with those of a few other ranks.

No rank waits for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.config.options import Annotated, Literal
from hvd_train.gradients.optimizer import Build, ModelOptimizer
from hvd_train.sync.base import Context, SyncStrategy
from hvd_train.sync.membership import every, nothing
from hvd_train.sync.replicas.flat import FlatParameters, copy_
from hvd_train.sync.replicas.replica_set import ReplicaSet, refuse_compression
from hvd_train.sync.replicas.topology import DIRECTED, UNDIRECTED, Round, Topology, shares, weights
from hvd_train.sync.scale import OwnMean
from hvd_train.sync.view import View

_BIASED = "biased."


class PushSum(View):
    """The variables of push-sum: x_i, which is mixed, and the weights w_i of all ranks.

    The model has z_i = x_i / w_i. Without push-sum all w_i are 1, and x_i is z_i itself.
    """

    def __init__(self, ranks: int, rank: int, *, used: bool) -> None:
        super().__init__()
        self._rank, self._used = rank, used
        self._weights = torch.ones(ranks, dtype=torch.float64)
        self._biased: list[Tensor] = []
        """x_i; empty without push-sum."""

    def extend(self, flat: FlatParameters) -> None:
        self._flat = flat
        if self._used:
            weight = float(self._weights[self._rank])
            self._biased += [weight * t for t in flat.tensors[len(self._biased) :]]

    @property
    def mixed(self) -> list[Tensor]:
        """x_i."""
        return self._biased or self._flat.tensors

    def move_(self) -> None:
        """Add to x_i the step that the optimizer has made from z_i."""
        for x, z, before in zip(self._biased, self._flat.tensors, self._unbiased(), strict=False):
            x += z - before

    def mix_weights(self, rounds: list[Round]) -> None:
        """Let w be W w, and z_i be x_i / w_i for the x_i that has been mixed in `rounds`."""
        if self._used:
            self._weights = weights(rounds) @ self._weights
            copy_(self._flat.tensors, self._unbiased())

    def contribute_(self) -> None:
        """Write x_i to the flat parameters: the mean of all x_i is the mean of the model."""
        copy_(self._flat.tensors, self.mixed)

    def reset(self) -> None:
        """Let x_i and z_i be the mean, which is in the flat parameters."""
        self._weights.fill_(1)
        copy_(self.mixed, self._flat.tensors)

    def copies(self) -> Iterator[tuple[str, Tensor]]:
        return self._flat.named(self._biased) if self._used else iter(())

    def state_dict(self) -> dict[str, Any]:
        return {"mass": self._weights.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._saved_weights = state["mass"]

    def rank_state(self) -> dict[str, Tensor]:
        return self._flat.by_name(self._biased, _BIASED)

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        self._weights = torch.tensor(self._saved_weights, dtype=torch.float64)
        self._flat.restore_(self._biased, state, _BIASED)

    def _unbiased(self) -> list[Tensor]:
        weight = float(self._weights[self._rank])
        return [x / weight for x in self._biased]


class Gossip(SyncStrategy):
    """A local step, then x_i <- sum_j W_ij x_j: the order of SGP (Assran et al., arXiv 1811.10792).

    D-PSGD (Lian et al., arXiv 1705.09056) adds a rank's step after the averaging. With push-sum
    only the columns of W sum to one, and the scalars w_i are mixed as x_i is. Every rank knows all
    weights of the graph, so w_i is not sent.
    """

    def __init__(self, context: Context, topology: Topology, push_sum: bool) -> None:
        comm = context.comm
        self._topology, self._seed = topology, context.seed
        self._push_sum = PushSum(comm.size, comm.rank, used=push_sum)
        self._replicas = ReplicaSet(
            comm,
            [self._push_sum],
            extend=self._push_sum.extend,
            contribute_=self._push_sum.contribute_ if push_sum else nothing,
            measures_agreed=True,
        )
        # Neighbours wait for one another in every step: in `size` steps every rank has waited for
        # all others.
        members = self._replicas.members(every(comm.size))
        super().__init__(context, members=members, gradient_scale=OwnMean(comm), view=self._replicas)
        refuse_compression(context, "gossip")

    def optimizer(self, model: nn.Module, build: Build) -> ModelOptimizer:
        return self._replicas.use(super().optimizer(model, build))

    def start(self, model: nn.Module) -> None:
        super().start(model)
        self._replicas.start(model)

    def on_gradients(self, step: int) -> None:
        self._replicas.refresh()

    @torch.no_grad()
    def on_parameters(self, step: int) -> None:
        self._replicas.step()
        rounds = self._topology(self.comm.size, step, self._seed)
        self._push_sum.move_()
        for x in self._push_sum.mixed:
            self._mix_(x, rounds)
        self._push_sum.mix_weights(rounds)

    def finish(self) -> None:
        if self._replicas.diverged:
            self._replicas.average()
            self._push_sum.reset()

    def _mix_(self, x: Tensor, rounds: list[Round]) -> None:
        """Replace x_i by sum_j W_ij x_j; collective."""
        parts, rank = shares(rounds), self.comm.rank
        sources = [to.index(rank) for to in rounds]
        received = [self.comm.exchange(x, to[rank], source) for to, source in zip(rounds, sources, strict=True)]
        x *= parts[rank]
        for source, other in zip(sources, received, strict=True):
            if source != rank:
                x.add_(other, alpha=parts[source])


def create(
    context: Context,
    *,
    topology: Annotated[
        Literal["ring", "exponential", "random"],
        "the ranks that a rank averages with: its neighbours, the rank 1, 2, 4, ... places on in turn, or a random one in "
        "every step",
    ] = "exponential",
    push_sum: Annotated[
        bool, "send one way only: in a ring to the next rank, at random to two ranks that do not send back"
    ] = False,
) -> Gossip:
    return Gossip(context, (DIRECTED if push_sum else UNDIRECTED)[topology], push_sum)

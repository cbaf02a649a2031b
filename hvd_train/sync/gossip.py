"""Every step ranks average their parameters with those of a few others: nobody waits for all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hvd_train.options import Annotated, Literal
from hvd_train.sync._flat import copy_
from hvd_train.sync._replicas import Replicas
from hvd_train.sync._topology import DIRECTED, UNDIRECTED, Round, Topology, shares, weights
from hvd_train.sync.base import Context

_BIASED = "biased."


class Gossip(Replicas):
    """A local step, then x_i <- sum_j W_ij x_j: SGP's order (Assran et al., arXiv 1811.10792). D-PSGD (Lian et al., arXiv
    1705.09056) adds a rank's step after the averaging.

    With push-sum only the columns of W sum to one. A scalar w_i is mixed as x_i is; the model computes with z_i = x_i / w_i, and
    the step at z_i moves x_i. Ranks know all weights of the graph, so w_i is not sent.
    """

    merges_rarely = True

    def __init__(self, context: Context, topology: Topology, push_sum: bool) -> None:
        super().__init__(context)
        self._topology, self._push_sum, self._seed = topology, push_sum, context.seed
        self._mass = torch.ones(self.comm.size, dtype=torch.float64)
        """w_i of all ranks."""
        self._biased: list[Tensor] = []
        """x_i, with push-sum."""

    def meets(self, step: int) -> bool:
        """Neighbours wait for one another in every step, so that in `size` steps everybody has waited for all."""
        return (step + 1) % self.comm.size == 0

    def follow(self) -> None:
        if self._push_sum:
            mass = float(self._mass[self.comm.rank])
            self._biased += [mass * t for t in self.flat.tensors[len(self._biased) :]]

    @torch.no_grad()
    def on_parameters(self, step: int) -> None:
        super().on_parameters(step)
        rounds = self._topology(self.comm.size, step, self._seed)
        if self._push_sum:
            self._move_()
        for x in self._biased or self.flat.tensors:
            self._mix_(x, rounds)
        if self._push_sum:
            self._mass = weights(rounds) @ self._mass
            copy_(self.flat.tensors, self._unbiased())

    def contribute_(self) -> None:
        if self._push_sum:
            copy_(self.flat.tensors, self._biased)

    def merge(self) -> None:
        super().merge()
        if self._push_sum:
            self._mass.fill_(1)
            copy_(self._biased, self.flat.tensors)

    def _mix_(self, x: Tensor, rounds: list[Round]) -> None:
        parts, rank = shares(rounds), self.comm.rank
        sources = [to.index(rank) for to in rounds]
        heard = [self.comm.exchange(x, to[rank], source) for to, source in zip(rounds, sources, strict=True)]
        x *= parts[rank]
        for source, other in zip(sources, heard, strict=True):
            if source != rank:
                x.add_(other, alpha=parts[source])

    def _move_(self) -> None:
        """Move x_i as the optimizer has moved z_i."""
        for x, z, before in zip(self._biased, self.flat.tensors, self._unbiased(), strict=True):
            x += z - before

    def _unbiased(self) -> list[Tensor]:
        mass = float(self._mass[self.comm.rank])
        return [x / mass for x in self._biased]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "mass": self._mass.tolist()}

    def rank_state(self) -> dict[str, Tensor]:
        return {**super().rank_state(), **self.flat.by_name(self._biased, _BIASED)}

    def go_on_alone(self, state: dict[str, Tensor]) -> None:
        super().go_on_alone(state)
        self._mass = torch.tensor(self._agreement["mass"], dtype=torch.float64)
        self.flat.restore_(self._biased, state, _BIASED)


def create(
    context: Context,
    *,
    topology: Annotated[
        Literal["ring", "exponential", "random"],
        "whom a rank averages with: its neighbours, the rank 1, 2, 4, ... places on in turn, or one drawn anew in every step",
    ] = "exponential",
    push_sum: Annotated[
        bool, "send one way only: a ring to the next rank, at random to two ranks without hearing from them"
    ] = False,
) -> Gossip:
    return Gossip(context, (DIRECTED if push_sum else UNDIRECTED)[topology], push_sum)

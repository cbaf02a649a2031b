"""A server's part of the parameters, and the optimizer that updates it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.optimizer import Build, State
from hvd_train.parted import of_part
from hvd_train.sharding import Piece, cut
from hvd_train.sync._flat import FlatParameters


@dataclass(frozen=True)
class Run:
    """Elements `start` to `stop` of flat tensor number `tensor`: `pieces` of parameters, one after another."""

    tensor: int
    start: int
    stop: int
    pieces: list[Piece]

    def of(self, tensors: Sequence[Tensor]) -> Tensor:
        """These elements of the flat tensors."""
        return tensors[self.tensor][self.start : self.stop]

    def views(self, values: Tensor, parameters: Sequence[Tensor]) -> Iterator[tuple[Piece, Tensor]]:
        """Each piece with its part of `values`, shaped like the parameter where it is all of it."""
        parts = values.split([piece.stop - piece.start for piece in self.pieces])
        for piece, part in zip(self.pieces, parts, strict=True):
            shape = parameters[piece.index].shape
            yield piece, part.view(shape) if part.numel() == shape.numel() else part


def deal(sizes: Sequence[Sequence[int]], servers: int, *, whole: bool) -> list[list[Run]]:
    """The runs of each server, where flat tensor t is made of parameters of `sizes[t]` elements; pieces number all of them."""
    dealt: list[list[Run]] = [[] for _ in range(servers)]
    first = 0
    for tensor, lengths in enumerate(sizes):
        begin = [0, *accumulate(lengths)]
        pieces = cut(lengths, servers, whole=whole)
        for server in range(servers):
            own = [p for p in pieces if p.owner == server]
            if own:
                start, stop = begin[own[0].index] + own[0].start, begin[own[-1].index] + own[-1].stop
                numbered = [replace(p, index=first + p.index) for p in own]
                dealt[server].append(Run(tensor, start, stop, numbered))
        first += len(lengths)
    return dealt


class Shard:
    """The values of some runs, in memory of their own on the host, and the optimizer that updates them."""

    def __init__(
        self, runs: Sequence[Run], flat: FlatParameters, names: Sequence[str], build: Build, state: State
    ) -> None:
        self._runs, self._parameters, self._names = runs, flat.parameters, names
        self.values = [run.of(flat.tensors).detach().cpu().clone() for run in runs]
        self._owned = [(piece, nn.Parameter(view)) for piece, view in self._views(self.values)]
        # A server may hold nothing, and torch's optimizers refuse to have no parameter.
        nothing = nn.Parameter(torch.zeros(0))
        self.torch = build([nothing, *(p for _, p in self._owned)])
        self._load(state)

    def step(self, gradients: Sequence[Tensor], unused: set[int], rate: float) -> None:
        """Update by `gradients`, one a run, with learning rate `rate`; parameters of the numbers `unused` have none."""
        for (_, p), (piece, gradient) in zip(self._owned, self._views(gradients), strict=True):
            p.grad = None if piece.index in unused else gradient
        for group in self.torch.param_groups:
            group["lr"] = rate
        self.torch.step()

    def state(self) -> State:
        """What the optimizer remembers of the owned pieces, by parameter."""
        state: dict[int, Any] = self.torch.state_dict()["state"]
        return {self._names[piece.index]: state[i] for i, (piece, _) in enumerate(self._owned, 1) if i in state}

    def _load(self, state: State) -> None:
        named = [(piece, self._names[piece.index]) for piece, _ in self._owned]
        own = {
            i: of_part(state[name], self._parameters[piece.index].shape, piece.of)
            for i, (piece, name) in enumerate(named, 1)
            if name in state
        }
        if own:
            self.torch.load_state_dict({**self.torch.state_dict(), "state": own})

    def _views(self, tensors: Sequence[Tensor]) -> Iterator[tuple[Piece, Tensor]]:
        for run, values in zip(self._runs, tensors, strict=True):
            yield from run.views(values, self._parameters)


def joined(parts: Sequence[dict[str, Any]], shape: torch.Size) -> dict[str, Any]:
    """A parameter's state from that of its pieces, in order; numbers are the same in each."""
    first = parts[0]
    if len(parts) == 1:
        return first
    return {k: torch.cat([p[k] for p in parts]).view(shape) if _cut(v) else v for k, v in first.items()}


def _cut(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 1

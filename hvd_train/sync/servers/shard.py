"""A server's part of the parameters, and the optimizer that updates it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.gradients.optimizer import Build, State
from hvd_train.gradients.partitioned import of_piece
from hvd_train.gradients.pieces import Piece, cut
from hvd_train.sync.replicas.flat import FlatParameters


@dataclass(frozen=True)
class Run:
    """Elements `start` to `stop` of flat tensor `tensor`: consecutive `pieces` of parameters."""

    tensor: int
    start: int
    stop: int
    pieces: list[Piece]

    def of(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return these elements of the flat tensors."""
        return tensors[self.tensor][self.start : self.stop]

    def views(self, values: Tensor, parameters: Sequence[Tensor]) -> Iterator[tuple[Piece, Tensor]]:
        """Yield each piece with its part of `values`.

        The part has the shape of the parameter if it is all of the parameter.
        """
        parts = values.split([piece.stop - piece.start for piece in self.pieces])
        for piece, part in zip(self.pieces, parts, strict=True):
            shape = parameters[piece.index].shape
            yield piece, part.view(shape) if part.numel() == shape.numel() else part


def assign_runs(sizes: Sequence[Sequence[int]], servers: int, *, whole: bool) -> list[list[Run]]:
    """Return the runs of each server. Flat tensor t consists of parameters of `sizes[t]` elements.

    Pieces number the parameters of all flat tensors. `whole`: no parameter is split.
    """
    assigned: list[list[Run]] = [[] for _ in range(servers)]
    first = 0
    for tensor, lengths in enumerate(sizes):
        begin = [0, *accumulate(lengths)]
        pieces = cut(lengths, servers, whole=whole)
        for server in range(servers):
            own = [p for p in pieces if p.owner == server]
            if own:
                start, stop = begin[own[0].index] + own[0].start, begin[own[-1].index] + own[-1].stop
                numbered = [replace(p, index=first + p.index) for p in own]
                assigned[server].append(Run(tensor, start, stop, numbered))
        first += len(lengths)
    return assigned


class Shard:
    """The values of some runs, copied to host memory, and the optimizer that updates them."""

    def __init__(
        self, runs: Sequence[Run], flat: FlatParameters, names: Sequence[str], build: Build, state: State
    ) -> None:
        """`names` are those of `flat.parameters`. The optimizer starts from its part of `state`."""
        self._runs, self._parameters, self._names = runs, flat.parameters, names
        self.values = [run.of(flat.tensors).detach().cpu().clone() for run in runs]
        self._owned = [(piece, nn.Parameter(view)) for piece, view in self._views(self.values)]
        # A server may own nothing, and torch's optimizers reject an empty list of parameters.
        nothing = nn.Parameter(torch.zeros(0))
        self.torch = build([nothing, *(p for _, p in self._owned)])
        self._load(state)

    def step(self, gradients: Sequence[Tensor], unused: set[int], rate: float) -> None:
        """Update by `gradients`, one per run, with learning rate `rate`.

        The parameters numbered in `unused` have none.
        """
        for (_, p), (piece, gradient) in zip(self._owned, self._views(gradients), strict=True):
            p.grad = None if piece.index in unused else gradient
        for group in self.torch.param_groups:
            group["lr"] = rate
        self.torch.step()

    def state(self) -> State:
        """Return the optimizer's state of the owned pieces, by parameter."""
        state: dict[int, Any] = self.torch.state_dict()["state"]
        return {self._names[piece.index]: state[i] for i, (piece, _) in enumerate(self._owned, 1) if i in state}

    def _load(self, state: State) -> None:
        named = [(piece, self._names[piece.index]) for piece, _ in self._owned]
        own = {
            i: of_piece(state[name], self._parameters[piece.index].shape, piece.of)
            for i, (piece, name) in enumerate(named, 1)
            if name in state
        }
        if own:
            self.torch.load_state_dict({**self.torch.state_dict(), "state": own})

    def _views(self, tensors: Sequence[Tensor]) -> Iterator[tuple[Piece, Tensor]]:
        for run, values in zip(self._runs, tensors, strict=True):
            yield from run.views(values, self._parameters)


def joined(pieces: Sequence[dict[str, Any]], shape: torch.Size) -> dict[str, Any]:
    """Return a parameter's state from the states of its pieces, in order.

    Numbers are equal in all of them.
    """
    first = pieces[0]
    if len(pieces) == 1:
        return first
    return {k: torch.cat([p[k] for p in pieces]).view(shape) if _is_split(v) else v for k, v in first.items()}


def _is_split(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 1

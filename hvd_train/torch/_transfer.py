"""How the data of agreed requests moves; every rank of a process set calls these in the same order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch._utils import _unflatten_dense_tensors

from hvd_train.adasum import adasum
from hvd_train.comm.base import Communicator, Op
from hvd_train.torch._negotiation import OPS, Spec

ROOM = 4 << 20
"""Bytes of the fusion buffer: more do not fit into the cache, and are reduced in turns."""

SMALL = 32 << 10
"""Bytes up to which the engine reduces ordinary memory with one barrier less than memory of its own."""

_REDUCTIONS: dict[str, Op] = {"Sum": "sum", "Average": "sum", "Min": "min", "Max": "max", "Product": "product"}


class Place(NamedTuple):
    """Consecutive tensors that are reduced as one: in `fused`, of which each has a part, or a lone one where it lies."""

    turn: slice
    fused: Tensor | None = None
    parts: tuple[Tensor, ...] = ()


class Transfer:
    """The data of one process set, whose ranks of the world are `ranks`."""

    def __init__(self, comm: Communicator, ranks: Sequence[int]) -> None:
        self.comm, self.ranks = comm, tuple(ranks)
        self._buffer: Tensor | None = None

    def all_reduce(
        self, spec: Spec, inputs: list[Tensor], outputs: list[Tensor], places: list[Place] | None = None
    ) -> list[Place] | None:
        """`inputs` into `outputs`, which have the dtype and the reduction of `spec` in common; they may be the same.

        Where it was done comes back, to be given again with tensors of the same shapes.
        """
        if OPS[spec.op] == "Adasum":
            for x, out in zip(inputs, outputs, strict=True):
                out.copy_(_scaled(self._adasum(_scaled(x, spec.prescale)), spec.postscale))
            return None
        some = [i for i, x in enumerate(inputs) if x.numel()]
        if len(some) < len(inputs):
            inputs, outputs = [inputs[i] for i in some], [outputs[i] for i in some]
        if places is None:
            places = [self._place(inputs, turn) for turn in _turns(inputs)]
        for place in places:
            self._reduce_turn(spec, inputs[place.turn], outputs[place.turn], place)
        return places if spec.device == "cpu" else None

    def _place(self, inputs: list[Tensor], turn: slice) -> Place:
        together = inputs[turn]
        if len(together) == 1:
            return Place(turn)
        fused = self._room(sum([x.numel() for x in together]), together[0])
        return Place(turn, fused, tuple(_unflatten_dense_tensors(fused, together)))

    def _reduce_turn(self, spec: Spec, inputs: list[Tensor], outputs: list[Tensor], place: Place) -> None:
        if place.fused is None:
            if outputs[0] is not inputs[0]:
                outputs[0].copy_(inputs[0])
            self._reduce_(outputs[0], spec)
            return
        torch._foreach_copy_(place.parts, inputs)
        self._reduce_(place.fused, spec)
        torch._foreach_copy_(outputs, place.parts)

    def _reduce_(self, x: Tensor, spec: Spec) -> None:
        _scale_(x, spec.prescale)
        if OPS[spec.op] == "Average" and x.is_floating_point():
            self.comm.all_reduce_(x, "mean")
        else:
            self.comm.all_reduce_(x, _REDUCTIONS[OPS[spec.op]])
            if OPS[spec.op] == "Average":
                x.div_(self.comm.size, rounding_mode="trunc")
        _scale_(x, spec.postscale)

    def _room(self, numel: int, like: Tensor) -> Tensor:
        """Memory in which the engine reduces fastest, which for few bytes is any."""
        nbytes = numel * like.element_size()
        if nbytes <= SMALL or like.device.type != "cpu":
            return like.new_empty(numel)
        if self._buffer is None:
            self._buffer = self.comm.allocate(ROOM, torch.uint8)
        return self._buffer[:nbytes].view(like.dtype)

    def _adasum(self, x: Tensor) -> Tensor:
        """Pairs of ranks, pairs of pairs, ... combine what they have; size is a power of two (arXiv 2006.02924)."""
        distance = 1
        while distance < self.comm.size:
            partner = self.comm.rank ^ distance
            other = self.comm.exchange(x, partner, partner)
            x = adasum(x, other) if partner > self.comm.rank else adasum(other, x)
            distance *= 2
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        return torch.cat(self.comm.all_gather(x))

    def broadcast(self, x: Tensor, output: Tensor, root: int) -> Tensor:
        """Rank `root` of the world's `x` into `output`."""
        source = self.ranks.index(root)
        if source == self.comm.rank and output is not x:
            output.copy_(x)
        self.comm.broadcast_(output, source)
        return output

    def all_to_all(self, x: Tensor, splits: list[int]) -> tuple[Tensor, list[int]]:
        """Rows for this rank from all, and how many from each."""
        received = self.comm.all_to_all(x[: sum(splits)].split(splits))
        return torch.cat(received), [part.shape[0] for part in received]

    def reduce_scatter(self, spec: Spec, x: Tensor) -> Tensor:
        mean = OPS[spec.op] == "Average"
        mine = self.comm.reduce_scatter(_scaled(x, spec.prescale), "mean" if mean and x.is_floating_point() else "sum")
        if mean and not x.is_floating_point():
            mine.div_(self.comm.size, rounding_mode="trunc")
        _scale_(mine, spec.postscale)
        return mine


def _turns(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Consecutive tensors that fit the fusion buffer together, or one that alone does not."""
    start = used = 0
    for i, x in enumerate(tensors):
        nbytes = x.numel() * x.element_size()
        if i > start and used + nbytes > ROOM:
            yield slice(start, i)
            start, used = i, 0
        used += nbytes
    if tensors:
        yield slice(start, len(tensors))


def _scale_(x: Tensor, factor: float) -> None:
    """Integers are scaled as real numbers and lose their fraction."""
    if factor != 1.0:
        x.copy_(_scaled(x, factor))


def _scaled(x: Tensor, factor: float) -> Tensor:
    if factor == 1.0:
        return x
    return x * factor if x.is_floating_point() else (x.double() * factor).to(x.dtype)

"""Which rank computes which part of which copy of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from hvd_train.comm.base import Communicator
from hvd_train.comm.single import SingleCommunicator
from hvd_train.errors import UserError


class Place(NamedTuple):
    """Copy of the model, stage of the pipeline, and share of each split layer, all from 0."""

    data: int
    stage: int
    tensor: int


@dataclass(frozen=True)
class Layout:
    """`data` copies of a model, each in `pipeline` stages, each of those on `tensor` ranks.

    Ranks that share a layer are neighbours, so that launchers put them on one host; then come those of the next stage.
    """

    pipeline: int
    tensor: int
    data: int

    @property
    def split(self) -> bool:
        return self.pipeline * self.tensor > 1

    def place(self, rank: int) -> Place:
        above, tensor = divmod(rank, self.tensor)
        data, stage = divmod(above, self.pipeline)
        return Place(data, stage, tensor)

    def ranks(self, data: int, stage: int) -> range:
        first = (data * self.pipeline + stage) * self.tensor
        return range(first, first + self.tensor)


def layout(ranks: int, pipeline: int, tensor: int) -> Layout:
    """The layout of `ranks` ranks; UserError where they are no whole number of copies."""
    each = pipeline * tensor
    data, rest = divmod(ranks, each)
    if rest:
        nearest = f"{data * each} or {data * each + each}" if data else f"{each}"
        divisors = ", ".join(str(n) for n in range(1, ranks + 1) if ranks % n == 0)
        raise UserError(
            f"parallel: pipeline {pipeline} x tensor {tensor} = {each} ranks a copy of the model, which does not divide np = "
            f"{ranks}; start {nearest} ranks, or let pipeline x tensor be one of {divisors}"
        )
    return Layout(pipeline, tensor, data)


class Mesh:
    """The communicators of one rank in a layout; collective.

    `all` ranks; those of this `copy` of the model; its `pipeline`, stage by stage, and the `tensor` ranks of its stage; and the
    ranks that have the same part in every copy, `copies`.
    """

    def __init__(self, comm: Communicator, layout: Layout) -> None:
        self.layout, self.all = layout, comm
        self.place = data, stage, tensor = layout.place(comm.rank)
        self.tensor = _group(comm, layout.tensor, data * layout.pipeline + stage)
        self.pipeline = _group(comm, layout.pipeline, data * layout.tensor + tensor)
        self.copies = _group(comm, layout.data, stage * layout.tensor + tensor)
        several = layout.pipeline > 1 and layout.tensor > 1
        only = self.pipeline if layout.tensor == 1 else self.tensor
        self.copy = _group(comm, layout.pipeline * layout.tensor, data) if several else only


def _group(comm: Communicator, size: int, color: int) -> Communicator:
    """The `size` ranks that gave the same `color`: a communicator of its own where it has to be one, since they are dear."""
    if size == 1:
        return SingleCommunicator()
    return comm if size == comm.size else comm.split(color, comm.rank)

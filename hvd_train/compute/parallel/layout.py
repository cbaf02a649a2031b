"""Which rank computes which part of which copy of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.errors import UserError


class Position(NamedTuple):
    """The copy of the model, the pipeline stage, and the part of split layers of a rank, from 0."""

    data: int
    stage: int
    tensor: int


@dataclass(frozen=True)
class Layout:
    """`data` copies of a model, each in `pipeline` stages, each stage on `tensor` ranks.

    The ranks of a stage are consecutive, so that launchers place them on one host. Next come the
    stages of a copy.
    """

    pipeline: int
    tensor: int
    data: int

    @property
    def divides_model(self) -> bool:
        return self.pipeline * self.tensor > 1

    def position(self, rank: int) -> Position:
        above, tensor = divmod(rank, self.tensor)
        data, stage = divmod(above, self.pipeline)
        return Position(data, stage, tensor)

    def ranks(self, data: int, stage: int) -> range:
        """Return the ranks of a stage of a copy."""
        first = (data * self.pipeline + stage) * self.tensor
        return range(first, first + self.tensor)


def layout(ranks: int, pipeline: int, tensor: int) -> Layout:
    """Return the layout of `ranks` ranks; UserError if they are not a whole number of copies."""
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
    """The communicators of one rank in a layout; made by all ranks together.

    - `all`: all ranks
    - `copy`: the ranks of this copy of the model
    - `pipeline`: one rank of each stage of this copy, stage by stage
    - `tensor`: the ranks of this stage of this copy
    - `data`: the ranks with the same part of the model in every copy, the data-parallel group
    """

    def __init__(self, comm: Communicator, layout: Layout) -> None:
        self.layout, self.all = layout, comm
        self.position = data, stage, tensor = layout.position(comm.rank)
        self.tensor = _group(comm, layout.tensor, data * layout.pipeline + stage)
        self.pipeline = _group(comm, layout.pipeline, data * layout.tensor + tensor)
        self.data = _group(comm, layout.data, stage * layout.tensor + tensor)
        both = layout.pipeline > 1 and layout.tensor > 1
        only = self.pipeline if layout.tensor == 1 else self.tensor
        self.copy = _group(comm, layout.pipeline * layout.tensor, data) if both else only


def _group(comm: Communicator, size: int, color: int) -> Communicator:
    """Return the communicator of the `size` ranks with the same `color`.

    Split `comm` only if that is necessary.
    """
    if size == 1:
        return SingleCommunicator(comm.traffic)
    return comm if size == comm.size else comm.split(color, comm.rank)

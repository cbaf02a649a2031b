"""Data movement of agreed requests.

All ranks of a process set call these methods in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch._utils import _unflatten_dense_tensors

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.ops import Op
from hvd_train.gradients.adasum import adasum
from hvd_train.torch.entry import Entry
from hvd_train.torch.requests import OPS, Response, Spec

FUSION_BUFFER = 4 << 20
"""Bytes of the fusion buffer. A larger buffer does not fit into the CPU cache, so larger sets of
tensors are reduced in several steps."""

SMALL = 32 << 10
"""Largest number of bytes for which ordinary memory is faster than shared memory: it saves a
barrier."""

_REDUCTIONS: dict[str, Op] = {"Sum": "sum", "Average": "sum", "Min": "min", "Max": "max", "Product": "product"}


class Fused(NamedTuple):
    """Consecutive tensors that are reduced together, at positions `tensors`.

    They are copied to `parts`, views of `buffer`. A single tensor is reduced in place, without a
    buffer.
    """

    tensors: slice
    buffer: Tensor | None = None
    parts: tuple[Tensor, ...] = ()


class Transfer:
    """Data movement in one process set. `ranks` are its ranks of the world."""

    def __init__(self, comm: Communicator, ranks: Sequence[int]) -> None:
        self.comm, self.ranks = comm, tuple(ranks)
        self._buffer: Tensor | None = None

    def carry_out(self, response: Response, entries: Sequence[Entry | None]) -> None:
        """Move the data of a response.

        `entries` has None for requests of other ranks, after `join`.
        """
        spec = response.requests[0].spec
        if spec.kind == "allreduce":
            self._all_reduce_entries(response, entries)
            return
        entry = entries[0]
        assert entry is not None, "only all-reductions continue without ranks that have joined"
        if spec.kind == "allgather":
            entry.result = [self.all_gather(x) for x in entry.inputs]
        elif spec.kind == "broadcast":
            pairs = zip(entry.inputs, entry.outputs, strict=True)
            entry.result = [self.broadcast(x, out, spec.root) for x, out in pairs]
        elif spec.kind == "alltoall":
            assert entry.splits is not None, "an alltoall has the rows for each rank"
            entry.result = self.all_to_all(entry.inputs[0], entry.splits)
        else:
            entry.result = [self.reduce_scatter(spec, x) for x in entry.inputs]

    def _all_reduce_entries(self, response: Response, entries: Sequence[Entry | None]) -> None:
        """Reduce the tensors of all requests together. A rank that has joined contributes zeros."""
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []
        for request, entry in zip(response.requests, entries, strict=True):
            zeros = _zeros(request.spec) if entry is None else []
            inputs += zeros if entry is None else entry.inputs
            outputs += zeros if entry is None else entry.outputs
        spec = response.requests[0].spec
        if len(set(spec.dtypes)) == 1:
            response.cache = self.all_reduce(spec, inputs, outputs, response.cache)
            return
        for dtype in dict.fromkeys(x.dtype for x in inputs):
            same = [i for i, x in enumerate(inputs) if x.dtype == dtype]
            self.all_reduce(spec, [inputs[i] for i in same], [outputs[i] for i in same])

    def all_reduce(
        self, spec: Spec, inputs: list[Tensor], outputs: list[Tensor], layout: list[Fused] | None = None
    ) -> list[Fused] | None:
        """Reduce `inputs` into `outputs` and return the layout of the fusion.

        All tensors have the same dtype and the reduction of `spec`; inputs and outputs may be the
        same. The caller may pass the layout again with tensors of the same shapes.
        """
        if OPS[spec.op] == "Adasum":
            for x, out in zip(inputs, outputs, strict=True):
                out.copy_(_scaled(self._adasum(_scaled(x, spec.prescale)), spec.postscale))
            return None
        nonempty = [i for i, x in enumerate(inputs) if x.numel()]
        if len(nonempty) < len(inputs):
            inputs, outputs = [inputs[i] for i in nonempty], [outputs[i] for i in nonempty]
        if layout is None:
            layout = [self._fuse(inputs, tensors) for tensors in _groups(inputs)]
        for fused in layout:
            self._reduce_fused(spec, inputs[fused.tensors], outputs[fused.tensors], fused)
        return layout if spec.device == "cpu" else None

    def _fuse(self, inputs: list[Tensor], tensors: slice) -> Fused:
        group = inputs[tensors]
        if len(group) == 1:
            return Fused(tensors)
        buffer = self._allocate(sum([x.numel() for x in group]), group[0])
        return Fused(tensors, buffer, tuple(_unflatten_dense_tensors(buffer, group)))

    def _reduce_fused(self, spec: Spec, inputs: list[Tensor], outputs: list[Tensor], fused: Fused) -> None:
        if fused.buffer is None:
            if outputs[0] is not inputs[0]:
                outputs[0].copy_(inputs[0])
            self._reduce_(outputs[0], spec)
            return
        torch._foreach_copy_(fused.parts, inputs)
        self._reduce_(fused.buffer, spec)
        torch._foreach_copy_(outputs, fused.parts)

    def _reduce_(self, x: Tensor, spec: Spec) -> None:
        _scale_(x, spec.prescale)
        if OPS[spec.op] == "Average" and x.is_floating_point():
            self.comm.all_reduce_(x, "mean")
        else:
            self.comm.all_reduce_(x, _REDUCTIONS[OPS[spec.op]])
            if OPS[spec.op] == "Average":
                x.div_(self.comm.size, rounding_mode="trunc")
        _scale_(x, spec.postscale)

    def _allocate(self, numel: int, like: Tensor) -> Tensor:
        """Return memory in which the communicator reduces fastest. For few bytes any will do."""
        nbytes = numel * like.element_size()
        if nbytes <= SMALL or like.device.type != "cpu":
            return like.new_empty(numel)
        if self._buffer is None:
            self._buffer = self.comm.allocate(FUSION_BUFFER, torch.uint8)
        return self._buffer[:nbytes].view(like.dtype)

    def _adasum(self, x: Tensor) -> Tensor:
        """Combine the tensors of all ranks pairwise in log2(size) steps (arXiv 2006.02924).

        The number of ranks is a power of two.
        """
        distance = 1
        while distance < self.comm.size:
            partner = self.comm.rank ^ distance
            other = self.comm.exchange(x, partner, partner)
            x = adasum(x, other) if partner > self.comm.rank else adasum(other, x)
            distance *= 2
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """Return the tensors of all ranks, concatenated along the first dimension."""
        return torch.cat(self.comm.all_gather(x))

    def broadcast(self, x: Tensor, output: Tensor, root: int) -> Tensor:
        """Copy `x` of the rank `root` of the world into `output`."""
        source = self.ranks.index(root)
        if source == self.comm.rank and output is not x:
            output.copy_(x)
        self.comm.broadcast_(output, source)
        return output

    def all_to_all(self, x: Tensor, splits: list[int]) -> tuple[Tensor, list[int]]:
        """Return the rows that all ranks send to this one, and the number of rows from each."""
        received = self.comm.all_to_all(x[: sum(splits)].split(splits))
        return torch.cat(received), [part.shape[0] for part in received]

    def reduce_scatter(self, spec: Spec, x: Tensor) -> Tensor:
        """Return this rank's rows of the reduction."""
        mean = OPS[spec.op] == "Average"
        mine = self.comm.reduce_scatter(_scaled(x, spec.prescale), "mean" if mean and x.is_floating_point() else "sum")
        if mean and not x.is_floating_point():
            mine.div_(self.comm.size, rounding_mode="trunc")
        _scale_(mine, spec.postscale)
        return mine


def _zeros(spec: Spec) -> list[Tensor]:
    return [torch.zeros(s, dtype=getattr(torch, d)) for s, d in zip(spec.shapes, spec.dtypes, strict=True)]


def _groups(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Yield groups of consecutive tensors that fit the fusion buffer. A larger tensor is alone."""
    start = used = 0
    for i, x in enumerate(tensors):
        nbytes = x.numel() * x.element_size()
        if i > start and used + nbytes > FUSION_BUFFER:
            yield slice(start, i)
            start, used = i, 0
        used += nbytes
    if tensors:
        yield slice(start, len(tensors))


def _scale_(x: Tensor, factor: float) -> None:
    """Scale `x` in place. Integers are scaled in float64 and truncated."""
    if factor != 1.0:
        x.copy_(_scaled(x, factor))


def _scaled(x: Tensor, factor: float) -> Tensor:
    if factor == 1.0:
        return x
    return x * factor if x.is_floating_point() else (x.double() * factor).to(x.dtype)

"""Compression by a narrower dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator, Then, Work
from hvd_train.gradients.compression.base import BucketLayout


class Cast:
    """Sums gradients in `dtype`. Gradients of a dtype that is no wider are sent as they are."""

    whole = False
    per_bucket = False

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def reducer(self, layout: BucketLayout, comm: Communicator) -> CastReducer:
        return CastReducer(self.dtype, layout, comm)


class CastReducer:
    def __init__(self, dtype: torch.dtype, layout: BucketLayout, comm: Communicator) -> None:
        self._dtype, self._comm = dtype, comm
        self._payload = comm.allocate(sum(layout.sizes) + len(layout.shapes), dtype, layout.device)

    def sum_async_(self, flat: Tensor) -> Work:
        if flat.element_size() <= self._dtype.itemsize:
            return self._comm.all_reduce_async_(flat, "sum")
        self._payload.copy_(flat)
        return Then(self._comm.all_reduce_async_(self._payload, "sum"), lambda: flat.copy_(self._payload))

    def state(self) -> dict[str, Tensor]:
        return {}

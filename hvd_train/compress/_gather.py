"""Sums of payloads that cannot be added in flight: every rank gathers all and adds what they stand for."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from hvd_train.comm.base import Communicator, Work
from hvd_train.compress._residual import Residual
from hvd_train.compress.base import Layout


class Codec(Protocol):
    """Turns a flat float32 tensor into bytes and back; zeros stay zeros, and what is not finite does not become finite."""

    def encode(self, x: Tensor) -> Tensor:
        """The bytes that stand for `x`."""

    def add_(self, total: Tensor, payload: Tensor) -> None:
        """Add to `total` what `payload` stands for."""

    def state(self) -> dict[str, Tensor]:
        """As `Reducer.state`."""


class GatherReducer:
    """Adds the ranks' payloads in rank order, in float32; flags travel behind them, a byte each.

    Payloads are made while backward runs, and travel then too where the engine can gather beside the caller.
    """

    def __init__(self, codec: Codec, layout: Layout, comm: Communicator, residual: Residual | None = None) -> None:
        self._codec, self._layout, self._comm, self._residual = codec, layout, comm, residual

    def sum_async_(self, flat: Tensor) -> Work:
        gradients, flags = self._layout.split(flat)
        x = self._residual.added_to(gradients, flags) if self._residual else gradients.float()
        payload = self._codec.encode(x)
        return self._comm.submit(lambda: self._gather(payload, x, flat))

    def state(self) -> dict[str, Tensor]:
        kept = {"residual": self._residual.kept} if self._residual else {}
        return {**self._codec.state(), **kept}

    def _gather(self, payload: Tensor, x: Tensor, flat: Tensor) -> None:
        gradients, flags = self._layout.split(flat)
        messages = self._comm.all_gather(torch.cat([payload, flags.to(torch.uint8)]))
        total = torch.zeros_like(x)
        flags.zero_()
        for message in messages:
            self._codec.add_(total, message[: -len(flags)])
            flags += message[-len(flags) :]
        # A step whose gradient is not finite is taken back by loss scaling: it must not spoil those after it.
        if self._residual and total.isfinite().all():
            self._residual.keep(gradients, self._decoded(payload, x))
        gradients.copy_(total)

    def _decoded(self, payload: Tensor, like: Tensor) -> Tensor:
        decoded = torch.zeros_like(like)
        self._codec.add_(decoded, payload)
        return decoded
